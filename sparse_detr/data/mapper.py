"""Turn a record in Detectron2's format into an input of the model."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from sparse_detr.data.augmentation import test_augmentations, train_augmentations
from sparse_detr.data.boxes import annotated_boxes, clip_boxes, find_box_faults, is_crowd
from sparse_detr.data.images import BadImageError, Draft, check_value_range, read_draft, read_recorded_image
from sparse_detr.errors import UserError, WorkerError

logger = logging.getLogger(__name__)


class DetrDatasetMapper:
    """Reads, augments and converts one image with its boxes.

    The result has `image` ((3, height, width) uint8 after augmentation), `height` and `width` of the original, the
    other fields of the record (`file_name`, `image_id`) and, in training, `instances` with `gt_boxes` (x1, y1, x2, y2
    in pixels of `image`) and `gt_classes`. Crowds and boxes without area inside the image are left out; an image
    without boxes stays, as a negative. For an unusable image the result is None, with one line in the log.

    Args:
        is_train: whether to return `instances`.
        augmentations: of Detectron2, applied in order.
        image_format: "RGB" or "BGR", as in the model's pixel statistics.
        value_range: the values of black and white of gray images of more than 8 bits, such as (0, 4095) for 12 bits;
            by default 0 and 65535 for 16 bits, 0 and 1 for floats.
        draft_short_side: decode a JPEG at a half, a quarter or an eighth of its size, as long as its short side keeps
            this many pixels: at least the largest short side that the augmentations make. It saves time for photographs
            much larger than that, and changes pixels a little; None decodes all images at full size.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        value_range: Sequence[float] | None = None,
        draft_short_side: int | None = None,
    ):
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format is {image_format!r}; give RGB or BGR")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.value_range = check_value_range(value_range)
        self.draft_short_side = draft_short_side
        self._logged: set[str] = set()

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict[str, Any]:
        augmentations = _train_augmentations(cfg.INPUT) if is_train else _test_augmentations(cfg.INPUT)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "value_range": cfg.INPUT.get("VALUE_RANGE"),  # not among Detectron2's own keys
            "draft_short_side": cfg.INPUT.get("DRAFT_SHORT_SIDE") if is_train else None,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Map a record, which is not changed.

        Raises:
            UserError: the values of black and white of the image are unknown, or an `iscrowd` is neither 0 nor 1.
        """
        try:
            image, scale = self._read(record)
        except BadImageError as error:
            if error.kind == "value range":
                raise WorkerError(message=str(error)) from None
            self._log_once(record["file_name"], f"skipped an image: {error}")
            return None
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        sample = {key: value for key, value in record.items() if key != "annotations"}
        height, width = image.shape[0] * scale, image.shape[1] * scale
        sample.setdefault("height", height)
        sample.setdefault("width", width)
        sample["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        if self.is_train:
            size = sample["height"], sample["width"]
            to_draft = T.ScaleTransform(height, width, image.shape[0], image.shape[1])
            transforms = T.TransformList([to_draft] if scale > 1 else []) + transforms
            sample["instances"] = _instances(record.get("annotations", []), size, transforms, augmented.image.shape[:2])
        return sample

    def _read(self, record: dict[str, Any]) -> Draft:
        if self.draft_short_side is None:
            return Draft(read_recorded_image(record, self.image_format, self.value_range), 1)
        return read_draft(record, self.draft_short_side, self.image_format, self.value_range)

    def _log_once(self, file_name: str, message: str) -> None:
        if file_name not in self._logged:
            self._logged.add(file_name)
            logger.warning(message)


def _instances(
    annotations: list[dict[str, Any]], size: tuple[int, int], transforms: T.TransformList, new_size: tuple[int, int]
) -> Instances:
    """Return the boxes and classes inside an image of `new_size` (height, width) after `transforms`."""
    annotations = [item for item in annotations if not is_crowd(item)]
    boxes = annotated_boxes(annotations)
    usable = find_box_faults(boxes, *size).usable
    boxes = clip_boxes(boxes[usable], *size)
    boxes = clip_boxes(transforms.apply_box(boxes) if len(boxes) else boxes, *new_size)
    classes = np.array([item["category_id"] for item in annotations], dtype=np.int64)[usable]
    instances = Instances(new_size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes).float())
    instances.gt_classes = torch.from_numpy(classes)
    return instances[instances.gt_boxes.nonempty()]


def _train_augmentations(cfg) -> list[T.Augmentation]:
    """Build the augmentations of a yacs config's INPUT node; DETR's crop is the only kind of crop."""
    if cfg.CROP.ENABLED and cfg.CROP.TYPE != "absolute_range":
        raise UserError(f"INPUT.CROP.TYPE is {cfg.CROP.TYPE!r}; give 'absolute_range', the crop of DETR's augmentation")
    if cfg.MIN_SIZE_TRAIN_SAMPLING != "choice":
        raise UserError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING is {cfg.MIN_SIZE_TRAIN_SAMPLING!r}; give 'choice'")
    return train_augmentations(
        short_sizes=cfg.MIN_SIZE_TRAIN,
        max_size=cfg.MAX_SIZE_TRAIN,
        crop_range=tuple(cfg.CROP.SIZE) if cfg.CROP.ENABLED else None,
        flip=cfg.RANDOM_FLIP,
        preset=cfg.get("AUGMENTATION"),  # not among Detectron2's own keys
    )


def _test_augmentations(cfg) -> list[T.Augmentation]:
    return test_augmentations(short_size=cfg.MIN_SIZE_TEST, max_size=cfg.MAX_SIZE_TEST)
