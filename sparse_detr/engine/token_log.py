"""Hooks that log what the token selection of a training covers: numbers at every log, pictures once in a while.

Neither draws a random number or changes a loss: a training with them gives the same weights to the last bit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode
from torch import nn

from sparse_detr.analysis.token_recall import selection_metrics
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.model import build_test_mapper
from sparse_detr.config.run import Run
from sparse_detr.data.images import BadImageError, read_recorded_image
from sparse_detr.engine.random_state import keep_random_state
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

PREFIX = "tokens/"
PICTURE = "validation image"
_SCORE_THRESHOLD = 0.3
_WIDTH = 1000  # of a picture for TensorBoard, in pixels


class LogTokens(HookBase):
    """Puts `selection_metrics` of the training's own batch into the event storage, as `tokens/recall` and so on.

    Only the iterations that are written are measured; of accumulated batches the last one counts. Models without a part
    `supervision`, such as Detectron2's own, have no tokens and log nothing.

    Args:
        model: without DistributedDataParallel.
        period: iterations between two logs.
    """

    def __init__(self, *, model: nn.Module, period: int) -> None:
        self._supervision = getattr(model, "supervision", None)
        self._period = period
        self._handle: Any = None
        self._metrics: dict[str, float] = {}

    def before_step(self) -> None:
        done = self.trainer.iter + 1
        if self._supervision is not None and (done % self._period == 0 or done == self.trainer.max_iter):
            self._handle = self._supervision.register_forward_pre_hook(self._measure)

    def _measure(self, supervision: nn.Module, inputs: Sequence[Any]) -> None:
        """Take the output of the detector and the targets, which the supervision is called with."""
        self._metrics = selection_metrics(*inputs)

    def after_step(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            for name, value in self._metrics.items():
                self.trainer.storage.put_scalar(PREFIX + name, value, smoothing_hint=False)


@dataclass(frozen=True, eq=False)
class ValidationImage:
    """An image of the validation data with its true boxes.

    Args:
        inputs: of the model.
        image: (H, W, 3) uint8 RGB.
        boxes: (T, 4) xyxy in pixels of the image.
        labels: class of every box.
        class_names: by class index; empty if they are unknown.
    """

    inputs: dict[str, Any]
    image: np.ndarray
    boxes: np.ndarray
    labels: list[int]
    class_names: list[str]


def load_validation_image(run: Run) -> ValidationImage:
    """Read the first image of the first validation set that has true boxes and can be read.

    Raises:
        UserError: there is no such image.
    """
    remedy = f"set {kind_of(run.config).assignment('train.vis_period', 0)}, or name validation data with boxes"
    if not run.evaluation_sets:
        raise UserError(f"pictures of a validation image are asked for, but there are no validation data; {remedy}")
    name = run.evaluation_sets[0].names[0]
    mapper = build_test_mapper(run.config)
    for record in DatasetCatalog.get(name):
        boxes = [item for item in record.get("annotations", ()) if not item.get("iscrowd")]
        if not boxes:
            continue
        try:
            image = read_recorded_image(record, "RGB", getattr(mapper, "value_range", None))
        except BadImageError:
            continue
        if (inputs := mapper(record)) is not None:
            corners = [BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS) for item in boxes]
            names = list(MetadataCatalog.get(name).get("thing_classes", []))
            return ValidationImage(inputs, image, np.array(corners), [item["category_id"] for item in boxes], names)
    raise UserError(f"no image of {name} has a true box and can be read; {remedy}")


class LogPictures(HookBase):
    """Puts a picture of one validation image into the event storage: true boxes, detections and token maps.

    TensorBoard's writer is the only one that keeps it.

    Args:
        model: without DistributedDataParallel.
        image: that is shown, always the same.
        period: iterations between two pictures.
    """

    def __init__(self, *, model: nn.Module, image: ValidationImage, period: int) -> None:
        self._model, self._image, self._period = model, image, period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0:
            title = f"After {done:,} iterations"
            with keep_random_state(), inference_context(self._model), torch.no_grad():
                picture = draw_validation_image(self._model, self._image, title=title)
            self.trainer.storage.put_image(PICTURE, picture.transpose(2, 0, 1))


def draw_validation_image(model: nn.Module, image: ValidationImage, *, title: str) -> np.ndarray:
    """Return a page with true boxes, detections and token maps, (H, 1000, 3) uint8 RGB."""
    from PIL import Image

    from sparse_detr.visualization import draw_detections, list_detections, overview_page
    from sparse_detr.visualization.detections import list_boxes
    from sparse_detr.visualization.token_maps import watch_token_maps
    from sparse_detr.visualization.views import OVERVIEW_ZOOM

    with watch_token_maps(model) as maps_of:
        output = model.outputs([image.inputs])
    [result] = model.detections(output, [image.inputs])
    found = list_detections(result["instances"].to("cpu"), image.class_names, _SCORE_THRESHOLD)
    truth = list_boxes(image.boxes, image.labels, image.class_names)
    page = overview_page(
        image.image,
        draw_detections(image.image, found, caption=f"score at least {_SCORE_THRESHOLD:g}", zoom=OVERVIEW_ZOOM),
        maps_of(output),
        title=title,
        truth=draw_detections(image.image, truth, with_labels=False, zoom=OVERVIEW_ZOOM),
    )
    height = round(page.shape[0] * _WIDTH / page.shape[1])
    return np.asarray(Image.fromarray(page).resize((_WIDTH, height), Image.Resampling.LANCZOS))
