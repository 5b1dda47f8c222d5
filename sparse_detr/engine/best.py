"""The score of the best model so far, which is stored in the file of its weights."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_detr.checkpoint import load_file
from sparse_detr.engine.checkpointer import BEST_PREFIX, earlier_files
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

logger = logging.getLogger(__name__)

LAST_SCORED = ".last_scored"


def best_score(folder: str, metric: str, start: int) -> float | None:
    """Return the score in `model_best.pth`; None if the file is missing, damaged or has another metric.

    A score after iteration `start` does not count either.
    """
    weights, beside = Path(folder, f"{BEST_PREFIX}.pth"), Path(folder, f"{BEST_PREFIX}.json")
    if not weights.exists():
        if beside.exists():
            logger.warning(f"{beside} holds a best score, but {weights.name} is missing; the score is ignored")
        return None
    if weights.name in earlier_files(folder):
        logger.warning(f"{weights} is of an earlier training; the next evaluation replaces it")
        return None
    try:
        checkpoint = load_file(weights)
    except UserError as error:
        logger.warning(f"the best score so far is ignored, since its weights are lost: {error}")
        return None
    score = checkpoint.get("best") or _score_beside(beside, checkpoint)
    if score is None or score["metric"] != metric or score["iteration"] > start:
        logger.warning(f"{weights} has no {metric} of this training; the next evaluation replaces it")
        return None
    write_score(folder, score)
    return score["value"]


def write_score(folder: str, score: dict[str, Any]) -> None:
    """Write a copy of the score beside the weights, for people to read."""
    write_text_atomically(Path(folder, f"{BEST_PREFIX}.json"), json.dumps(score))


def remove_score(folder: str) -> None:
    """Remove the copy of the score; call this before the weights are replaced."""
    Path(folder, f"{BEST_PREFIX}.json").unlink(missing_ok=True)


def last_scored(folder: str) -> int:
    """Return the number of iterations whose scores were last taken into account; 0 if unknown."""
    return _read_last_scored(folder)[0]


def scores_after(folder: str, done: int) -> dict[str, float]:
    """Return the scores after `done` iterations, if they are the last ones that were taken into account; else {}."""
    last, scores = _read_last_scored(folder)
    return scores if last == done else {}


def write_last_scored(folder: str, done: int, scores: Mapping[str, float]) -> None:
    """Note that the scores after `done` iterations were taken into account."""
    write_text_atomically(Path(folder, LAST_SCORED), json.dumps({"iterations": done, "scores": dict(scores)}))


def _read_last_scored(folder: str) -> tuple[int, dict[str, float]]:
    try:
        noted = json.loads(Path(folder, LAST_SCORED).read_text(encoding="utf-8"))
        if isinstance(noted, int):  # of an older version
            return noted, {}
        return int(noted["iterations"]), {str(name): float(value) for name, value in noted["scores"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, {}


def improvement(metric: str, value: float, best: float) -> float:
    """Return by how much `value` is better than `best`: larger is better, but of losses smaller.

    Args:
        metric: name of the score; one with "loss" in its last part is a loss, such as `validation/total_loss`.
    """
    return best - value if "loss" in metric.rpartition("/")[2] else value - best


def _score_beside(path: Path, checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Return the score in the file of older versions; None unless it is whole and of the iteration of the weights."""
    try:
        score = json.loads(path.read_text(encoding="utf-8"))
        known = {"metric": str(score["metric"]), "value": float(score["value"]), "iteration": int(score["iteration"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if known["iteration"] == checkpoint.get("iteration") else None
