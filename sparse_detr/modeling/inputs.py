"""Checks of the inputs of a model: a wrong input is an error that names it, instead of bad training.

Values are read only from tensors on the CPU, so no check waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from sparse_detr.errors import UserError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
WIDE_INTEGERS = (torch.int32, torch.int64)
BRIGHTEST = 255


def check_images(batched_inputs: Any, channels: int) -> None:
    """Refuse a batch whose images are not what the model expects: (channels, h, w) with values of 0 to 255.

    Raises:
        UserError: names the image, what is wrong with it and the remedy.
    """
    if not isinstance(batched_inputs, list | tuple):
        hint = "; put it into a list" if isinstance(batched_inputs, dict) else ""
        raise UserError(f"a batch is a list of dicts, one an image, not {_kind(batched_inputs)}{hint}")
    if not batched_inputs:
        raise UserError("the batch is empty; give one dict an image")
    if torch.jit.is_tracing():  # a check would end up in the trace
        return
    for index, item in enumerate(batched_inputs):
        if not isinstance(item, dict):
            raise UserError(
                f"image {index} of the batch is {_kind(item)}; give a dict with 'image', a tensor ({channels}, h, w)"
            )
        _check_image(item, channels)


def check_sizes(batched_inputs: Sequence[dict[str, Any]]) -> None:
    """Refuse a `height` or `width` to scale detections to that is not a positive number."""
    for item in batched_inputs:
        for name in ("height", "width"):
            value = item.get(name, 1)
            if not _is_size(value):
                _refuse(item, f"{name!r} is {value!r}; give pixels of the original image, or leave it out")


def check_targets(item: dict[str, Any], num_classes: int) -> None:
    """Refuse true boxes that do not fit their image.

    Args:
        item: an image of a batch that `check_images` has passed.
        num_classes: number of classes of the data.

    Raises:
        UserError: names the image, the value and the remedy.
    """
    instances = item.get("instances")
    if instances is None:
        _refuse(item, "no `instances` to learn from; for detections call `model.eval()` first")
    if not isinstance(instances, Instances):
        _refuse(item, f"`instances` is {_kind(instances)}; give detectron2.structures.Instances")
    size, given = tuple(item["image"].shape[-2:]), tuple(instances.image_size)
    if size != given:
        _refuse(
            item,
            f"the instances are of an image of {given[0]} x {given[1]} pixels (height x width), but the image has "
            f"{size[0]} x {size[1]}; resize the boxes with the image",
        )
    boxes, classes = _fields(item, instances)
    if len(classes) and not classes.is_meta:
        _check_classes(item, classes, num_classes)
    if len(boxes) and _has_values_here(boxes):
        _check_boxes(item, boxes, size)


def _check_image(item: dict[str, Any], channels: int) -> None:
    if "image" not in item:
        _refuse(
            item, f"no 'image', only {', '.join(map(repr, item)) or 'an empty dict'}; give a tensor ({channels}, h, w)"
        )
    image = item["image"]
    if not isinstance(image, Tensor):
        _refuse(item, f"'image' is {_kind(image)}; give a tensor ({channels}, h, w) with values of 0 to 255")
    if image.ndim != 3 or image.shape[0] != channels:
        _refuse(item, f"'image' has shape {tuple(image.shape)}; {_shape_remedy(image, channels)}")
    if 0 in image.shape:
        _refuse(item, f"'image' has shape {tuple(image.shape)}, which has no pixel; leave the image out")
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point() and image.dtype not in WIDE_INTEGERS:
        _refuse(item, f"'image' is of {image.dtype}; scale it to 0..255 and give uint8 or a floating type")
    if _has_values_here(image):
        _check_range(item, image)


def _shape_remedy(image: Tensor, channels: int) -> str:
    wanted = f"give ({channels}, h, w)"
    if image.ndim == 4:
        return f"{wanted} and one dict for every image of a batch"
    if image.ndim == 2:
        return f"{wanted}: a grey image with `image.expand({channels}, -1, -1)`"
    if image.ndim == 3 and image.shape[-1] == channels:
        return f"{wanted}: permute(2, 0, 1)"
    if image.ndim == 3 and image.shape[0] == 1:
        return f"{wanted}: repeat the grey channel with `image.expand({channels}, -1, -1)`"
    if image.ndim == 3 and 4 in (image.shape[0], image.shape[-1]):
        return f"{wanted}: drop the alpha channel"
    return wanted


def _check_range(item: dict[str, Any], image: Tensor) -> None:
    """Refuse values that are not of 0 to 255; dark images pass, and so does the overshoot of resampling."""
    low, high = (value.item() for value in image.aminmax())
    values = f"'image' has values of {low:g} to {high:g}"
    if not (low >= -4 * BRIGHTEST and high <= 4 * BRIGHTEST):  # NaN too
        _refuse(item, f"{values}; finite ones of 0 to 255 are expected")
    if low < -high / 2:
        _refuse(item, f"{values}; the model subtracts the mean itself: give 0 to 255")
    if high > 2 * BRIGHTEST:
        _refuse(item, f"{values}; scale them to 0..255")
    if high <= 1 and image.is_floating_point() and bool((image != image.round()).any()):
        _refuse(item, f"{values}; 0 to 255 are expected: multiply by 255")


def _fields(item: dict[str, Any], instances: Instances) -> tuple[Tensor, Tensor]:
    """Return boxes (T, 4) and classes (T,), checked for type and shape."""
    for name in ("gt_boxes", "gt_classes"):
        if not instances.has(name):
            _refuse(item, f"the instances have no {name!r}")
    boxes, classes = instances.gt_boxes, instances.gt_classes
    if not isinstance(boxes, Boxes):
        _refuse(item, f"gt_boxes is {_kind(boxes)}; give detectron2.structures.Boxes, x1, y1, x2, y2 in pixels")
    if not isinstance(classes, Tensor) or (classes.numel() and classes.dtype not in INTEGERS):
        kind = classes.dtype if isinstance(classes, Tensor) else _kind(classes)
        _refuse(item, f"gt_classes is of {kind}; give a tensor of int64")
    if not boxes.tensor.is_floating_point():
        _refuse(item, f"gt_boxes is of {boxes.tensor.dtype}; give floating numbers")
    if boxes.tensor.shape != (len(classes) if classes.ndim else -1, 4) or classes.ndim != 1:
        shapes = f"{tuple(boxes.tensor.shape)} and gt_classes {tuple(classes.shape)}"
        _refuse(item, f"gt_boxes has shape {shapes}; give (T, 4) and (T,)")
    return boxes.tensor, classes


def _check_classes(item: dict[str, Any], classes: Tensor, num_classes: int) -> None:
    low, high = torch.stack(classes.aminmax()).tolist()  # computed on their device: one transfer at most
    if low < 0:
        _refuse(item, f"class {low} of a true box is below 0; classes are 0 to {num_classes - 1}")
    if high >= num_classes:
        _refuse(item, f"class {high} of a true box is not below the {num_classes} classes of the model")


def _check_boxes(item: dict[str, Any], boxes: Tensor, size: tuple[int, int]) -> None:
    height, width = size
    extent = boxes.new_tensor([width, height])
    start, end = boxes[:, :2], boxes[:, 2:]
    # A row with NaN or infinity fails a comparison.
    sound = (end > start) & (start < extent) & (end > 0) & (start >= -extent) & (end <= 2 * extent)
    bad = ~sound.all(dim=1)
    if not bool(bad.any()):
        return
    box = boxes[bad][0]
    values = ", ".join(f"{value:g}" for value in box.tolist())
    _refuse(item, f"the true box ({values}) of an image of {height} x {width} pixels (height x width) {_fault(box)}")


def _fault(box: Tensor) -> str:
    x1, y1, x2, y2 = box.tolist()
    if not bool(torch.isfinite(box).all()):
        return "is not finite; drop it or mend the annotation"
    if x2 < x1 or y2 < y1:
        return "ends before it begins; boxes are x1, y1, x2, y2 in pixels"
    if x2 == x1 or y2 == y1:
        return "has no area; drop it"
    return "lies outside of the image; resize boxes with the image and drop those that a crop cuts off"


def _refuse(item: dict[str, Any], what: str) -> NoReturn:
    name = item.get("file_name", item.get("image_id"))
    raise UserError(f"{'an image' if name is None else name}: {what}")


def _is_size(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (not _has_values_here(value) or _is_size(value.item()))
    try:
        return bool(0 < value < math.inf)
    except (TypeError, ValueError):  # text, or an array of several numbers
        return False


def _has_values_here(tensor: Tensor) -> bool:
    """Return whether the values can be read without waiting for a GPU or breaking a compiled graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
