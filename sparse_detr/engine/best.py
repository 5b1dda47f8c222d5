"""The score of the best model so far, which lies inside the file of its weights."""

import json
import logging
from pathlib import Path
from typing import Any

from sparse_detr.checkpoint import load_file
from sparse_detr.engine.checkpointer import BEST_PREFIX, earlier_files
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

logger = logging.getLogger(__name__)

LAST_SCORED = ".last_scored"


def best_score(folder: str, metric: str, start: int) -> float | None:
    """Score of `model_best.pth`, or None if there is no whole one with this metric from before iteration `start`."""
    weights, beside = Path(folder, f"{BEST_PREFIX}.pth"), Path(folder, f"{BEST_PREFIX}.json")
    if not weights.exists():
        if beside.exists():
            logger.warning(f"{beside} names a best score, but {weights.name} is missing; the score counts no more")
        return None
    if weights.name in earlier_files(folder):
        logger.warning(f"{weights} is of an earlier training; the next evaluation replaces it")
        return None
    try:
        checkpoint = load_file(weights)
    except UserError as error:
        logger.warning(f"The best score so far counts no more, since its weights are lost: {error}")
        return None
    score = checkpoint.get("best") or _score_beside(beside, checkpoint)
    if score is None or score["metric"] != metric or score["iteration"] > start:
        logger.warning(f"{weights} has no {metric} of this training; the next evaluation replaces it")
        return None
    write_score(folder, score)
    return score["value"]


def write_score(folder: str, score: dict[str, Any]) -> None:
    """Repeat the score beside the weights, for people."""
    write_text_atomically(Path(folder, f"{BEST_PREFIX}.json"), json.dumps(score))


def remove_score(folder: str) -> None:
    """Take the copy away before the weights that it belongs to."""
    Path(folder, f"{BEST_PREFIX}.json").unlink(missing_ok=True)


def last_scored(folder: str) -> int:
    """Iterations after which the scores were last taken into account; 0 if that is not known."""
    try:
        return int(Path(folder, LAST_SCORED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def write_last_scored(folder: str, done: int) -> None:
    """Remember that the scores after `done` iterations were taken into account."""
    write_text_atomically(Path(folder, LAST_SCORED), str(done))


def _score_beside(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """The score file of older versions, if it is whole and of the iteration of the weights."""
    try:
        score = json.loads(path.read_text(encoding="utf-8"))
        known = {"metric": str(score["metric"]), "value": float(score["value"]), "iteration": int(score["iteration"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known["iteration"] == checkpoint.get("iteration") else None
