"""Read an image, or say why it cannot be used."""

import logging
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError

from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

# Errors of Pillow for missing, truncated and corrupt files: each decoder raises others.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


_EXIF_ORIENTATION = 0x0112

# Variable of the environment: an image with more pixels is refused. It replaces Pillow's own limit, which protects the
# memory.
MAX_PIXELS_VARIABLE = "SPARSE_DETR_MAX_PIXELS"


class BadImageError(Exception):
    """An error: an image cannot be used; the message names the file and the reason.

    Args:
        kind: "missing"; "corrupt": also truncated or no image; "another size": than recorded; "too large": too many
            pixels; "value range": the values of black and white are unknown; "form": an array of a wrong shape or type.
    """

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class Depth(NamedTuple):
    """The kind of values of a gray image of more than 8 bits.

    `default_range` holds the default values of black and white; None if there is no default.
    """

    name: str
    default_range: tuple[float, float] | None


def read_image(file_name: str, image_format: str = "RGB", value_range: Sequence[float] | None = None) -> np.ndarray:
    """Read an image with its EXIF orientation applied, as Detectron2 does.

    Gray images of more than 8 bits, which Pillow would clip at 255, are scaled to 8 bits. The scale is that of the
    file's mode, or `value_range`; it never depends on the values of the image.

    Args:
        file_name: path or URI that iopath knows.
        image_format: "RGB" or "BGR".
        value_range: the values of black and white of images of more than 8 bits, such as (0, 4095) for 12 bits; values
            outside are clipped. By default 0 and 65535 for 16 bits, 0 and 1 for floats.

    Returns:
        (height, width, 3) uint8.

    Raises:
        BadImageError: the file is missing, truncated, corrupt, no image, or has values outside the default range.
    """
    try:
        depth = image_depth(file_name)
        if depth is not None:
            return to_8_bits(file_name, read_values(file_name), depth, value_range)
        # Pillow's memory is read-only, and PyTorch warns when an augmentation uses it.
        return np.require(detection_utils.read_image(str(file_name), image_format), requirements="W")
    except UserError:  # is a ValueError
        raise
    except DECODING_ERRORS as error:
        raise BadImageError(f"{file_name}: {_reason(file_name, error)}", _kind_of_fault(error)) from error


def image_depth(file_name: str) -> Depth | None:
    """Return the depth that a file's header names; None for 8 bits or less.

    Raises:
        one of `DECODING_ERRORS`: the file is missing or no image.
    """
    _set_max_pixels()
    with PathManager.open(str(file_name), "rb") as file, Image.open(file) as header:
        return depth_of_mode(header.mode, header.format)


def depth_of_mode(mode: str, file_format: str | None) -> Depth | None:
    """Return the depth of an image by Pillow's mode, such as "I;16"; None for 8 bits or less."""
    if mode == "F":
        return Depth("float", (0.0, 1.0))
    if mode.startswith("I;16") or (mode == "I" and file_format in ("PNG", "PPM")):  # these formats have no 32 bits
        return Depth("16-bit", (0.0, 65535.0))
    return Depth("32-bit", None) if mode.startswith("I") else None


def read_values(file_name: str) -> np.ndarray:
    """Return the values of a gray image of more than 8 bits, unscaled, (height, width) float64; NaN stays NaN."""
    return detection_utils.read_image(str(file_name), None).astype(np.float64)


def check_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Return the range as two floats; None if it is None.

    Raises:
        UserError: it is not two finite numbers, the first below the second.
    """
    if value_range is None:
        return None
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"value_range is {value_range}; give the values of black and white, such as [0,4095] for 12 bits"
        )
    return low, high


def describe_depth(file_name: str, value_range: Sequence[float] | None) -> str | None:
    """Return a log line on how an image of more than 8 bits is read; None for other or unreadable images."""
    try:
        depth = image_depth(file_name)
    except DECODING_ERRORS:
        return None
    used = value_range or (depth and depth.default_range)
    if depth is None or used is None:
        return None
    return (
        f"{depth.name} gray images are read with {used[0]:g} as black and {used[1]:g} as white "
        "(dataloader.train.mapper.value_range, INPUT.VALUE_RANGE); check-data shows the values in the files"
    )


def read_recorded_image(
    record: dict[str, Any], image_format: str = "RGB", value_range: Sequence[float] | None = None
) -> np.ndarray:
    """Read the image of a Detectron2 record; it must have the recorded size.

    Raises:
        BadImageError: as `read_image`; also if the image has another size.
    """
    image = read_image(record["file_name"], image_format, value_range)
    _check_recorded_size(record, (image.shape[1], image.shape[0]))
    return image


class Draft(NamedTuple):
    """An image (height, width, 3) whose sides are those of the file divided by `scale`, rounded up."""

    image: np.ndarray
    scale: int


def read_draft(
    record: dict[str, Any],
    short_side: int,
    image_format: str = "RGB",
    value_range: Sequence[float] | None = None,
) -> Draft:
    """Read the image of a Detectron2 record, a large JPEG at a half, a quarter or an eighth of its size.

    The decoder leaves out the high frequencies of every 8x8 block, which takes less time than to decode and to resize
    them. The pixels differ from those of an image that is resized after it was decoded.

    Args:
        short_side: smallest short side in pixels of an image that is reduced.

    Raises:
        BadImageError: as `read_recorded_image`.
    """
    try:
        _set_max_pixels()
        with PathManager.open(str(record["file_name"]), "rb") as file, Image.open(file) as image:
            scale = _draft_scale(image, short_side)
            if scale > 1:
                return Draft(_decode_draft(record, image, scale, image_format), scale)
    except UserError:  # is a ValueError
        raise
    except DECODING_ERRORS as error:
        raise BadImageError(
            f"{record['file_name']}: {_reason(record['file_name'], error)}", _kind_of_fault(error)
        ) from error
    return Draft(read_recorded_image(record, image_format, value_range), 1)


def _draft_scale(image: Image.Image, short_side: int) -> int:
    """Return by what the decoder may divide the sides of an opened image: 8, 4, 2 or 1."""
    if image.format != "JPEG":
        return 1
    return next((scale for scale in (8, 4, 2) if min(image.size) // scale >= short_side), 1)


def _decode_draft(record: dict[str, Any], image: Image.Image, scale: int, image_format: str) -> np.ndarray:
    width, height = image.size
    _check_recorded_size(record, upright_size(image))
    image.draft(image.mode, (width // scale, height // scale))
    upright = ImageOps.exif_transpose(image)
    return np.require(detection_utils.convert_PIL_to_numpy(upright, image_format), requirements="W")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image with its EXIF orientation applied; no pixel is decoded."""
    width, height = image.size
    return (height, width) if image.getexif().get(_EXIF_ORIENTATION) in (5, 6, 7, 8) else (width, height)


def _check_recorded_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    """Raise `BadImageError` if an image of `size` (width, height) has another size than its record."""
    recorded = record.get("width", size[0]), record.get("height", size[1])
    if size != recorded:
        turned = ", sides swapped: EXIF orientation?" if size == recorded[::-1] else ""
        raise BadImageError(
            f"{record['file_name']}: is {size[0]}x{size[1]} (width x height{turned}), but the annotations record "
            f"{recorded[0]}x{recorded[1]}; correct the annotations or save the image again",
            "another size",
        )


def too_many_bad(bad: int, total: int, max_bad_share: float) -> bool:
    """Return whether `bad` of `total` images exceed the share; one bad image is allowed unless the share is 0."""
    return bad > max(int(max_bad_share * total), 1 if max_bad_share > 0 else 0)


def to_8_bits(file_name: str, values: np.ndarray, depth: Depth, value_range: Sequence[float] | None) -> np.ndarray:
    """Scale (height, width) values of 16 or 32 bits to (height, width, 3) uint8.

    Raises:
        BadImageError: the values of black and white are unknown; names `file_name`.
    """
    low, high = check_value_range(value_range) or depth.default_range or (math.nan, math.nan)
    if value_range is None:
        _refuse_values_beyond(file_name, values, depth)
    with np.errstate(over="ignore"):
        scaled = np.nan_to_num((values - low) / ((high - low) / 255))
    return np.repeat(np.clip(scaled + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _refuse_values_beyond(file_name: str, values: np.ndarray, depth: Depth) -> None:
    """Refuse an image with values outside the default range, or without a default range."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if depth.default_range is None or low < depth.default_range[0] - 1e-3 or high > depth.default_range[1] + 1e-3:
        expected = (
            "" if depth.default_range is None else f", not {depth.default_range[0]:g} to {depth.default_range[1]:g}"
        )
        raise BadImageError(
            f"{file_name}: a {depth.name} image with values from {low:g} to {high:g}{expected}; say which of the data "
            "set's values are black and white: dataloader.train.mapper.value_range=[LOW,HIGH] (lazy config), "
            "INPUT.VALUE_RANGE [LOW,HIGH] (yaml), --value-range LOW HIGH (check-data)",
            "value range",
        )


def _set_max_pixels() -> None:
    limit = os.environ.get(MAX_PIXELS_VARIABLE)
    if not limit:
        return
    if not limit.isdecimal() or int(limit) == 0:
        raise UserError(f"{MAX_PIXELS_VARIABLE} is {limit!r}; give a number of pixels, such as 400000000")
    Image.MAX_IMAGE_PIXELS = -(-int(limit) // 2)  # Pillow warns above this number and refuses above twice this number


def _kind_of_fault(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "too large"
    return "missing" if isinstance(error, FileNotFoundError) else "corrupt"


def _reason(file_name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, the most that are read; cut it into tiles, or "
            f"set the environment variable {MAX_PIXELS_VARIABLE} to a larger number if the memory suffices"
        )
    if isinstance(error, IsADirectoryError):
        return "is a folder; name a file in it"
    if "://" not in str(file_name) and Path(file_name).is_file() and Path(file_name).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    return f"cannot be decoded ({error})"
