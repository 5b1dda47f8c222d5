"""Reading one image, or saying why it cannot be used."""

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

logger = logging.getLogger(__name__)

# What Pillow raises for missing, truncated and corrupt files: each decoder has its own habit.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class BadImageError(Exception):
    """An image that cannot be used; the message names the file and the reason.

    `kind` is "missing", "corrupt" (or truncated, or no image at all) or "another size" than recorded.
    """

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def read_image(file_name: str, image_format: str = "RGB") -> np.ndarray:
    """Read an image with its EXIF orientation applied, as Detectron2 does.

    Gray images of more than 8 bits, which Pillow would cut off at 255, are scaled down to 8 bits.

    Args:
        file_name: path or URI that iopath knows.
        image_format: "RGB" or "BGR".

    Returns:
        (height, width, 3) uint8.

    Raises:
        BadImageError: missing, truncated, corrupt, or not an image.
    """
    try:
        with PathManager.open(str(file_name), "rb") as file, Image.open(file) as header:
            is_deep = header.mode == "F" or header.mode.startswith("I")
        if is_deep:
            return _to_8_bits(detection_utils.read_image(str(file_name), None))
        # Pillow's own memory is read-only, of which PyTorch warns when an augmentation takes it.
        return np.require(detection_utils.read_image(str(file_name), image_format), requirements="W")
    except _DECODING_ERRORS as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "corrupt"
        raise BadImageError(f"{file_name}: {_reason(file_name, error)}", kind) from error


def read_recorded_image(record: dict[str, Any], image_format: str = "RGB") -> np.ndarray:
    """`read_image` of a Detectron2 record, which must have the recorded size.

    Raises:
        BadImageError: as `read_image`, or of another size.
    """
    image = read_image(record["file_name"], image_format)
    size = image.shape[1], image.shape[0]
    recorded = record.get("width", size[0]), record.get("height", size[1])
    if size != recorded:
        turned = ", sides swapped: EXIF orientation?" if size == recorded[::-1] else ""
        raise BadImageError(
            f"{record['file_name']}: is {size[0]}x{size[1]} (width x height{turned}), but the annotations record "
            f"{recorded[0]}x{recorded[1]}; correct the annotations or save the image again",
            "another size",
        )
    return image


def too_many_bad(bad: int, total: int, max_bad_share: float) -> bool:
    """Whether `bad` of `total` images exceed the share; one is forgiven unless the share is 0."""
    return bad > max(int(max_bad_share * total), 1 if max_bad_share > 0 else 0)


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    """(height, width) of 16 or 32 bits -> (height, width, 3) uint8; beyond 255 the range is that of 16 bits."""
    image = np.nan_to_num(image.astype(np.float64))
    if image.max(initial=0) > 255:
        image = image / 257
    return np.repeat(np.clip(image + 0.5, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _reason(file_name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if "://" not in str(file_name) and Path(file_name).is_file() and Path(file_name).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    return f"cannot be decoded ({error})"
