"""Checkpoints that a training resumes from bit for bit."""

import logging
from typing import Any

from detectron2.utils import comm

from sparse_detr.engine.random_state import random_state
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.weights import SafeCheckpointer

logger = logging.getLogger(__name__)

BEST_PREFIX = "model_best"


class TrainingCheckpointer(SafeCheckpointer):
    """A checkpointer that also saves the random state of every rank.

    `save` must be called by every rank, since each contributes its random state; the main process writes.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        states = comm.gather(random_state())
        super().save(name, random_states=states, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Remember where to resume; the best model so far is not such a place."""
        if not last_filename_basename.startswith(BEST_PREFIX):
            super().tag_last_checkpoint(last_filename_basename)


def resume(checkpointer: TrainingCheckpointer, trainer: Trainer) -> int:
    """Load the last checkpoint into model, optimiser, scaler, hooks and random generators.

    Returns:
        int: the iteration to go on with.
    """
    extra = checkpointer.load(checkpointer.get_checkpoint_file())
    states = extra.get("random_states", [])
    if comm.get_rank() < len(states) == comm.get_world_size():
        trainer.resume_random_state(states[comm.get_rank()])
    else:
        logger.warning(
            f"The checkpoint was written by {len(states)} processes and {comm.get_world_size()} resume it: "
            "the random numbers start anew, so the result differs slightly from an uninterrupted training."
        )
    return trainer.iter + 1
