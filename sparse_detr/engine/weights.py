"""Loading the weights of a file into a model, whatever wrote the file."""

import logging
import os
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from sparse_detr.checkpoint import MatchReport, load_file, match_report
from sparse_detr.data.sample import WEIGHTS_FILE
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

FEW = 0.5  # share of the model's entries below which a checkpoint looks like a mistake


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that runs no code of a file, and looks at what fits before it loads.

    Args:
        skip_other_classes: whether a file with another number of classes may be loaded without its class rows, to
            fine-tune; else it is refused.
        averaged: whether the averaged weights of a file are loaded.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        skip_other_classes: bool = False,
        averaged: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.skip_other_classes = skip_other_classes
        self.averaged = averaged

    def _torch_load(self, f: str) -> dict[str, Any]:
        checkpoint = load_file(f)
        if not self.averaged:
            return checkpoint
        if "ema" not in checkpoint:
            raise UserError(f"{f} holds no averaged weights, only {', '.join(checkpoint)}; load it without --ema")
        return {"model": {name: value for name, value in checkpoint["ema"].items() if name != "n_averaged"}}

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


def load_weights(model: nn.Module, path: str, *, skip_other_classes: bool, ema: bool = False) -> None:
    """Load the weights alone, from any file that Detectron2 or this project writes; "" loads nothing.

    Args:
        model: changed in place.
        skip_other_classes: load a file with another number of classes without its class rows, to fine-tune.
        ema: load the averaged weights of the file.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of another model.
    """
    if path and "://" not in path and not os.path.isfile(path):
        hint = "`python -m sparse_detr.data.sample` makes it" if path.endswith(WEIGHTS_FILE) else "check the path"
        raise UserError(f"there is no checkpoint {path!r} (working directory: {os.getcwd()}); {hint}")
    SafeCheckpointer(model, skip_other_classes=skip_other_classes, averaged=ema).load(path, checkpointables=[])


def check_finite_weights(model: nn.Module, path: str) -> None:
    """Refuse a model with NaN or infinite weights.

    Args:
        path: where the weights came from, for the message.

    Raises:
        UserError: names the first such tensors and how many there are.
    """
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{path} holds NaN or infinite values in {len(bad)} of {len(state)} tensors: {', '.join(bad[:3])}{more}; "
            "give an earlier checkpoint"
        )
