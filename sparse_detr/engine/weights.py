"""Load the weights of a file of any origin into a model."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer
from torch import Tensor, nn

from sparse_detr.checkpoint import MatchReport, load_file, match_report
from sparse_detr.checkpoint.read import existing_file
from sparse_detr.checkpoint.unwrap import holds_average, unwrap
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

TRAINING_ONLY = ("auxiliary_proposals.", "denoising.", "encoder_heads.", "supervision.", "criterion.")
FEW = 0.5  # share of the model's entries below which a checkpoint looks like a mistake


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but it runs no code of a file, and compares file and model before it loads.

    Args:
        skip_other_classes: load a file with another number of classes without its class rows, to fine-tune; else refuse
            it.
        averaged: load the averaged weights of a file.
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
        self._match_names = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file or an address that Detectron2 knows; "" loads nothing.

        Raises:
            UserError: there is no such file, it cannot be read, or it is of another model.
        """
        file, queries = _local_file(path) if path else ("", {})
        self._match_names = queries.pop("matching_heuristics", ["False"]) == ["True"]
        if queries:
            raise UserError(f"{path}: only ?matching_heuristics=True may follow an address, not {', '.join(queries)}")
        return Checkpointer.load(self, file, checkpointables)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Return the content of the file, with its weights under "model", by name, wherever they were."""
        checkpoint = load_file(filename)
        try:
            found = unwrap(checkpoint, averaged=self.averaged)
        except UserError as error:
            raise UserError(f"{filename}: {error}") from error
        if found.dropped:
            logger.info(f"{filename}: {len(found.dropped)} entries are no weights: {', '.join(found.dropped[:5])}")
        if holds_average(checkpoint):
            logger.info(f"{filename} holds averaged weights, which were scored")
        match_names = self._match_names or filename.endswith(".pyth")  # pycls
        return {"matching_heuristics": match_names, **checkpoint, "model": found.weights}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Compare file and model, then load as Detectron2 does; files of old formats get its matching of names."""
        known = self.model.state_dict()
        if checkpoint.pop("matching_heuristics", False) and not known.keys() & checkpoint["model"].keys():
            checkpoint["model"] = _match_names(known, checkpoint)
        self._check_fit(match_report(self.model, checkpoint["model"]), checkpoint["model"])
        return super()._load_model(checkpoint)

    def _check_fit(self, report: MatchReport, weights: Mapping[str, Tensor]) -> None:
        report.check()
        _check_kinds(self.model, {name: weights[name] for name in report.matched})
        if report.skipped_classes and not self.skip_other_classes:
            name = report.skipped_classes[0]
            (in_file, *_), (in_model, *_) = report.misshapen[name]
            raise UserError(
                f"the checkpoint has {in_file} classes and the model {in_model} ({name}); set num_classes to "
                f"{in_file}, or train from the checkpoint (without --resume and --eval-only) to learn the new classes"
            )
        if report.skipped_classes:
            rows = ", ".join(f"{name} {report.misshapen[name][0]}" for name in report.skipped_classes)
            logger.warning(f"the checkpoint has another number of classes; these rows of it are skipped: {rows}")
        backbone_only = all(name.startswith("backbone.") for name in report.matched)
        if report.model_share < FEW and not backbone_only:
            logger.warning(f"the checkpoint fills little of the model; check that it is the right one\n{report}")
        else:
            logger.info(f"checkpoint: {str(report).splitlines()[0]}")


def _local_file(path: str) -> tuple[str, dict[str, list[str]]]:
    """Return the file of a path or an address, downloaded if necessary, and the queries after "?" in the address."""
    if os.path.exists(path):
        return str(existing_file(Path(path))), {}
    address = urlparse(path)
    if not address.scheme:
        hint = _hint_for_missing(path)
        raise UserError(f"there is no checkpoint {path!r} (working directory: {os.getcwd()}); {hint}")
    try:
        file = PathManager.get_local_path(address._replace(query="").geturl())
        if not os.path.isfile(file):
            raise UserError("there is no file")
        return file, parse_qs(address.query)
    except Exception as error:  # whatever the handler of the address raises
        raise UserError(f"{path} cannot be fetched ({error}); download it and give the file") from error


def _hint_for_missing(path: str) -> str:
    if path.endswith("mobilenet_v2_imagenet.pth"):
        return "`python -m sparse_detr.data.sample` makes it"
    return (
        "for no checkpoint leave the value empty" if path.lower() in ("null", "none", "''", '""') else "check the path"
    )


def _match_names(known: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename the weights by Detectron2's rule: names with equal endings match."""
    try:
        return align_and_update_state_dicts(known, checkpoint["model"], checkpoint.get("__author__") == "Caffe2")
    except (ValueError, KeyError, IndexError) as error:
        raise UserError(f"the names of the checkpoint cannot be matched with those of the model: {error}") from error


def _check_kinds(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse whole numbers for a float weight, and floats for whole numbers: loading would convert them silently."""
    expected = model.state_dict()
    for name, value in weights.items():
        if value.is_floating_point() != expected[name].is_floating_point():
            raise UserError(
                f"the entry {name} is {value.dtype} in the checkpoint and {expected[name].dtype} in the model "
                "(quantised weights?); save the float weights"
            )


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, skip_other_classes: bool, ema: bool = False
) -> None:
    """Load the weights alone, from any file that Detectron2 or this project writes; "" loads nothing.

    No code of the file is run.

    Args:
        model: changed in place.
        path: a file, or an address that Detectron2 knows (https://, detectron2://).
        skip_other_classes: load a file with another number of classes without its class rows, to fine-tune.
        ema: load the averaged weights of the file.

    Raises:
        UserError: the file is missing, cannot be read, holds no such weights, or is of another model.
    """
    loader = SafeCheckpointer(model, skip_other_classes=skip_other_classes, averaged=ema)
    loader.load(os.fspath(path), checkpointables=[])


class _TrainedWeights(SafeCheckpointer):
    """A checkpointer that refuses a file that lacks weights, such as one of a backbone alone."""

    def _check_fit(self, report: MatchReport, weights: Mapping[str, Tensor]) -> None:
        super()._check_fit(report, weights)
        if report.missing and all(name.startswith("backbone.") for name in report.matched):
            raise UserError(
                "the checkpoint holds the backbone alone, so the heads would be random; give the trained weights: "
                "weights=FILE (Python), train.init_checkpoint=FILE (lazy), MODEL.WEIGHTS FILE (yaml), or --resume for "
                "the last checkpoint of the output folder"
            )
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        lacking = [name for name in report.missing if name in parameters and not name.startswith(TRAINING_ONLY)]
        if lacking:
            raise UserError(
                f"the checkpoint lacks {len(lacking)} weights of the model, which would be random: "
                f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}; give the config it was trained with"
            )


def load_trained_weights(model: nn.Module, path: str | os.PathLike[str], *, ema: bool = False) -> None:
    """Load the weights of a whole detector, with the model's number of classes and all finite; "" loads nothing.

    Args:
        model: changed in place.
        path, ema: as in `load_weights`.

    Raises:
        UserError: as `load_weights`; also if weights that detections need are missing, NaN or infinite.
    """
    _TrainedWeights(model, averaged=ema).load(os.fspath(path), checkpointables=[])
    check_finite_weights(model, os.fspath(path))


def check_finite_weights(model: nn.Module, path: str) -> None:
    """Refuse a model with NaN or infinite weights.

    Args:
        path: the file of the weights, for the message.

    Raises:
        UserError: names the first such tensors and counts them.
    """
    state = model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{path} holds NaN or infinite values in {len(bad)} of {len(state)} tensors: {', '.join(bad[:3])}{more}; "
            "give an earlier checkpoint"
        )
