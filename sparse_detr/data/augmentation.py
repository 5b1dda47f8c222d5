"""DETR's augmentation, built from Detectron2's parts (Carion et al. 2020, appendix A.4; unchanged in Sparse DETR)."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from sparse_detr.data.presets import preset_augmentations
from sparse_detr.errors import UserError

FLIPS = {"none": (), "horizontal": ("horizontal",), "vertical": ("vertical",), "both": ("horizontal", "vertical")}

# DETR has no limit on the long side before its crop. This limit changes only images longer than 16:1, which would need
# gigabytes of memory.
_MAX_ASPECT_BEFORE_CROP = 16


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resize by the short side, but very long images keep at least one pixel."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform) and min(resize.new_h, resize.new_w) < 1:
            new_size = max(resize.new_h, 1), max(resize.new_w, 1)
            return T.ResizeTransform(resize.h, resize.w, *new_size, resize.interp)
        return resize


def train_augmentations(
    *,
    short_sizes: Sequence[int] = tuple(range(480, 801, 32)),
    max_size: int = 1333,
    crop_range: tuple[int, int] | None = (384, 600),
    crop_short_sizes: Sequence[int] = (400, 500, 600),
    flip: str = "horizontal",
    color_jitter: float = 0.0,
    preset: str | None = None,
) -> list[T.Augmentation]:
    """Return DETR's augmentation: flip; then, with equal probability, resize, or resize, crop and resize.

    Args:
        short_sizes: lengths in pixels to choose the short side from.
        max_size: longest long side in pixels.
        crop_range: smallest and largest side of the crop in pixels, drawn for each side; None for no crop.
        crop_short_sizes: lengths in pixels to choose the short side from before the crop.
        flip: "horizontal", "vertical", "both" (aerial images) or "none"; each with probability 0.5.
        color_jitter: brightness, contrast and saturation are each multiplied by 1 +- this much.
        preset: "photos", "aerial" or "industrial" in place of `flip` and `color_jitter`, see `PRESETS`.
    """
    own = [*_flips(flip), *_color_jitter(color_jitter)]
    augmentations = own if preset is None else preset_augmentations(preset)
    if crop_range is not None:
        before_crop = _resize(crop_short_sizes, _MAX_ASPECT_BEFORE_CROP * max(crop_short_sizes))
        crop = T.AugmentationList([before_crop, T.RandomCrop("absolute_range", tuple(crop_range))])
        augmentations.append(T.RandomApply(crop, prob=0.5))
    return [*augmentations, _resize(short_sizes, max_size)]


def test_augmentations(*, short_size: int = 800, max_size: int = 1333) -> list[T.Augmentation]:  # noqa: PT028
    """Return the resize of the evaluation: short side to `short_size` pixels, long side to at most `max_size`."""
    return [_resize([short_size], max_size)]


test_augmentations.__test__ = False  # type: ignore[attr-defined]  # not a test, despite its name


def _resize(short_sizes: Sequence[int], max_size: int) -> T.Augmentation:
    return ResizeShortestEdge(list(short_sizes), max_size, sample_style="choice")


def _flips(flip: str) -> list[T.Augmentation]:
    if flip not in FLIPS:
        raise UserError(f"flip is {flip!r}; give one of {', '.join(FLIPS)}")
    return [T.RandomFlip(horizontal=way == "horizontal", vertical=way == "vertical") for way in FLIPS[flip]]


def _color_jitter(amount: float) -> list[T.Augmentation]:
    if not 0 <= amount < 1:
        raise UserError(f"color_jitter is {amount}; give a number, 0 or more and below 1")
    if amount == 0:
        return []
    limits = 1 - amount, 1 + amount
    return [T.RandomBrightness(*limits), T.RandomContrast(*limits), T.RandomSaturation(*limits)]
