"""A `Predictor` of a file that `sparse-detr export` wrote: `Predictor("model.onnx")`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.errors import UserError
from sparse_detr.export.metadata import Metadata
from sparse_detr.export.runtime import ExportedFile
from sparse_detr.files import file_stamp
from sparse_detr.predictor import Options, Outputs, Predictor, _names


class ExportedPredictor(Predictor):
    """A predictor that runs an exported file; `Predictor(file)` makes one.

    It preprocesses as the config of the export did, and a call gives the same `Instances`. What the file holds as a
    constant, such as the budget, cannot be chosen.

    Args:
        file: written by `sparse-detr export`.
        weights, ema: refused: the file holds the weights.
        device: "cpu"; "cuda" for ONNX with onnxruntime-gpu.
        class_names: by label, in place of the file's.
        options: defaults of a call, see `Options`.

    Attributes:
        metadata: what the file says of itself.

    Raises:
        UserError: the file or an option cannot be used.
    """

    _precision = None  # it is the file's

    def __init__(
        self,
        file: str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        ema: bool = False,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self.options = Options().updated(options)
        require_detectron2()
        from sparse_detr.export.detector import ExportedDetector

        path = os.path.expanduser(os.fspath(file))
        if weights is not None or ema:
            given = "ema" if weights is None else "weights"
            raise UserError(f"{path} holds its weights; leave {given} out, or export the other weights")
        self._device = "cpu" if device is None else str(device)
        opened = ExportedFile(path, device=self._device)
        self.metadata: Metadata = opened.metadata
        if self.metadata.plugin is not None:
            raise UserError(f"{path} needs the plugin of {self.metadata.plugin}; export again without --plugin")
        self.weights = os.path.abspath(path)
        self._stamp = file_stamp(self.weights)
        self._mapper = _mapper(self.metadata, path)
        self.model = ExportedDetector(opened, self.metadata)
        self.class_names = self._checked_names(class_names, path)
        self._check(self.options)

    @property
    def is_dense(self) -> bool:
        """Return whether the encoder refines every token."""
        return self.metadata.keep_ratio is None

    def outputs(self, images: Any, *, attention_map: bool = True, **options: Any) -> Outputs:
        """Refuse: an exported file gives detections alone."""
        raise UserError(f"{self.weights} gives detections alone; for scores and tokens make a Predictor of the config")

    def save(self, folder: str | os.PathLike[str], *, notes: str = "") -> None:
        """Refuse: the file holds all that is needed."""
        raise UserError(f"{self.weights} holds all that a predictor needs; copy this file")

    def _check(self, options: Options) -> None:
        most = self.metadata.num_detections
        if options.top_k is not None and most is not None and options.top_k > most:
            raise UserError(f"top_k is {options.top_k}, but the file gives at most {most} detections")
        if options.budget is not None and str(options.budget) != self._fixed_budget:
            fixed = "all tokens" if self.is_dense and self.metadata.budget is None else self._fixed_budget
            raise UserError(
                f"budget is {options.budget}, but the file's is fixed: {fixed}; leave budget out, or export another "
                "file with --budget"
            )

    @property
    def _fixed_budget(self) -> str:
        """The file's budget as text: the one of the export, else the model's own share."""
        if self.metadata.budget is not None:
            return self.metadata.budget
        return str(1.0 if self.metadata.keep_ratio is None else self.metadata.keep_ratio)

    def _chosen(self, options: dict[str, Any]) -> Options:
        """Return the predictor's options, updated by those of a call; a time is no budget of a file."""
        chosen = self.options.updated(options)
        self._check(chosen)
        return chosen

    def _budget(self, options: Options) -> dict[str, Any]:
        return {}

    def _checked_names(self, given: Sequence[str] | None, path: str) -> list[str]:
        if given is None:
            return list(self.metadata.class_names)
        names, number = _names(given), self.metadata.num_classes
        if number is not None and len(names) != number:
            raise UserError(f"class_names has {len(names)} names, but {path} has {number} classes")
        return names

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {"device": self._device, "class_names": self.class_names or None, **vars(self.options)}
        return _restore, (self.weights, self._stamp, arguments)


def _restore(path: str, stamp: tuple[int, int] | None, arguments: dict[str, Any]) -> Predictor:
    """Unpickle a predictor; raise a `UserError` if its file has changed."""
    if os.path.isfile(path) and file_stamp(path) != stamp:
        raise UserError(f"{path} has changed since the predictor was pickled; make a new Predictor")
    return Predictor(path, **arguments)


def _mapper(metadata: Metadata, path: str) -> Any:
    """Return the preprocessing that the file names."""
    from sparse_detr.data.augmentation import test_augmentations
    from sparse_detr.data.mapper import DetrDatasetMapper

    if metadata.short_size is None or metadata.max_size is None:
        raise UserError(
            f"{path} does not say how to preprocess images, since its config does more than a resize by the short "
            "side; preprocess as the config does, and call sparse_detr.export.ExportedFile"
        )
    return DetrDatasetMapper(
        is_train=False,
        augmentations=test_augmentations(short_size=metadata.short_size, max_size=metadata.max_size),
        image_format=metadata.channel_order,
        value_range=metadata.value_range,
    )
