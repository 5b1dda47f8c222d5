"""Checkpoints that a training resumes from bit for bit."""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sparse_detr.checkpoint import MatchReport, load_file, match_report
from sparse_detr.data.sample import WEIGHTS_FILE
from sparse_detr.engine.random_state import random_state
from sparse_detr.engine.trainer import Trainer
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

BEST_PREFIX = "model_best"
FEW = 0.5  # share of the model's entries below which a checkpoint looks like a mistake


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with the random state of every rank and `weights_only=True`.

    `save` must be called by every rank, since each contributes its random state; the main process writes.

    Args:
        skip_other_classes: whether a file with another number of classes may be loaded without its class rows, to
            fine-tune; else it is refused.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, skip_other_classes: bool = False, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.skip_other_classes = skip_other_classes

    def save(self, name: str, **kwargs: Any) -> None:
        states = comm.gather(random_state())
        super().save(name, random_states=states, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Remember where to resume; the best model so far is not such a place."""
        if not last_filename_basename.startswith(BEST_PREFIX):
            super().tag_last_checkpoint(last_filename_basename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return load_file(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Detectron2's loading after a look at what fits; its own name matching for old formats stays its affair."""
        if not checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            consume_prefix_in_state_dict_if_present(checkpoint["model"], "module.")
            self._check_fit(match_report(self.model, checkpoint["model"]))
        return super()._load_model(checkpoint)

    def _check_fit(self, report: MatchReport) -> None:
        report.check()
        if report.skipped_classes and not self.skip_other_classes:
            name = report.skipped_classes[0]
            (in_file, *_), (in_model, *_) = report.misshapen[name]
            raise UserError(
                f"the checkpoint has {in_file} classes and the model {in_model} ({name}); set num_classes to "
                f"{in_file}, or train from the checkpoint (without --resume and --eval-only) to learn the new classes"
            )
        if report.skipped_classes:
            rows = ", ".join(f"{name} {report.misshapen[name][0]}" for name in report.skipped_classes)
            logger.warning(f"The checkpoint has another number of classes; these rows of it are skipped: {rows}")
        backbone_only = all(name.startswith("backbone.") for name in report.matched)
        if report.model_share < FEW and not backbone_only:
            logger.warning(f"The checkpoint fills little of the model; is it the right one?\n{report}")
        else:
            logger.info(f"Checkpoint: {str(report).splitlines()[0]}")


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


def load_weights(model: nn.Module, path: str, *, skip_other_classes: bool) -> None:
    """Load the weights alone, from any file that Detectron2 or this project writes; "" loads nothing."""
    if path and "://" not in path and not os.path.isfile(path):
        hint = "`python -m sparse_detr.data.sample` makes it" if path.endswith(WEIGHTS_FILE) else "check the path"
        raise UserError(f"there is no checkpoint {path!r} (working directory: {os.getcwd()}); {hint}")
    TrainingCheckpointer(model, skip_other_classes=skip_other_classes).load(path, checkpointables=[])
