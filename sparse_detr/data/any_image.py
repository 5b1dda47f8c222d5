"""Read one image in any form that an application may have it in."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
from PIL import Image

from sparse_detr.data.images import DECODING_ERRORS, BadImageError, Depth, depth_of_mode, read_image, to_8_bits

ACCEPTED_FORMS = (
    "give a path, a PIL.Image, a NumPy array (H, W, 3) or (H, W), or a torch tensor (3, h, w), with values of 0 to 255 "
    "as uint8"
)
GRAY_DEPTHS = {np.dtype(np.uint16): Depth("16-bit", (0.0, 65535.0)), np.dtype(np.float32): Depth("float", (0.0, 1.0))}


def read_any_image(
    image: Any, *, channel_order: str = "RGB", value_range: tuple[float, float] | None = None, name: str = "the image"
) -> np.ndarray:
    """Turn a path, a PIL image, an array or a tensor into the array that `read_image` returns for the same image.

    The EXIF orientation of a file or a PIL image is applied. Gray images get three equal channels; those of 16 bits and
    of floats are scaled to 8 bits.

    Args:
        image: a path, a PIL image, an array (H, W, 3), (H, W, 1) or (H, W), a tensor (3, h, w), (1, h, w) or (h, w).
        channel_order: "RGB" or "BGR", of arrays and tensors.
        value_range: the values of black and white of gray images of more than 8 bits, as in `read_image`.
        name: of the image, for the message.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        BadImageError: the image cannot be used; names it, the reason and the remedy.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.path.expanduser(os.fspath(image)), "RGB", value_range)
    if isinstance(image, Image.Image):
        return _from_pillow(image, value_range, name)
    if isinstance(image, torch.Tensor):
        return _from_array(_channels_last(image, name), channel_order, value_range, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, channel_order, value_range, name)
    remedy = ACCEPTED_FORMS
    if hasattr(image, "read"):
        remedy = "give PIL.Image.open(file)"
    elif isinstance(image, bytes | bytearray | memoryview):
        remedy = "give PIL.Image.open(io.BytesIO(data))"
    raise BadImageError(f"{name} is of type {type(image).__name__}; {remedy}", "form")


def _from_pillow(image: Image.Image, value_range: tuple[float, float] | None, name: str) -> np.ndarray:
    try:
        depth = depth_of_mode(image.mode, image.format)
        upright = _apply_exif_orientation(image)
        if depth is None:
            return np.require(convert_PIL_to_numpy(upright, "RGB"), requirements="W")
        return to_8_bits(name, np.asarray(upright).astype(np.float64), depth, value_range)
    except DECODING_ERRORS as error:
        raise BadImageError(f"{name} cannot be decoded ({error}); give another one", "corrupt") from error


def _channels_last(image: torch.Tensor, name: str) -> np.ndarray:
    found = f"{name} is a tensor {tuple(image.shape)} of {image.dtype}"
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3)):
        raise BadImageError(f"{found}; {_remedy(image.shape, first=True)}", "form")
    is_gray = image.ndim == 2 or image.shape[0] == 1
    if image.dtype != torch.uint8 and not (is_gray and image.dtype in (torch.uint16, torch.float32)):
        raise BadImageError(f"{found}; give uint8 with values of 0 to 255", "form")
    if image.is_meta or image.layout != torch.strided:
        raise BadImageError(
            f"{found} on {image.device} in the layout {image.layout}; give a dense one with values", "form"
        )
    values = image.numpy(force=True)
    return values if values.ndim == 2 else values.transpose(1, 2, 0)


def _from_array(
    image: np.ndarray, channel_order: str, value_range: tuple[float, float] | None, name: str
) -> np.ndarray:
    found = f"{name} is an array {image.shape} of {image.dtype}"
    image = np.asarray(image, dtype=image.dtype.newbyteorder("="))  # no matrix, and in the byte order of the machine
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
        raise BadImageError(f"{found}; {_remedy(image.shape, first=False)}", "form")
    if image.size == 0:
        raise BadImageError(f"{found}, so it has no pixel; leave it out", "form")
    is_gray = image.shape[2:] != (3,)
    if is_gray and image.dtype in GRAY_DEPTHS:
        return to_8_bits(name, image.reshape(image.shape[:2]).astype(np.float64), GRAY_DEPTHS[image.dtype], value_range)
    if image.dtype != np.uint8:
        raise BadImageError(f"{found}; give uint8 with values of 0 to 255", "form")
    if is_gray:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(image if channel_order == "RGB" else image[:, :, ::-1])


def _remedy(shape: tuple[int, ...], *, first: bool) -> str:
    """Return how to turn an array of this shape into one that can be read."""
    wanted = "(3, h, w)" if first else "(H, W, 3)"
    if len(shape) == 4:
        return f"give every image of a batch by itself, {wanted}: list(images)"
    if len(shape) == 3 and shape[-1 if first else 0] == 3:
        return f"give {wanted}: permute(2, 0, 1)" if first else f"give {wanted}: transpose(1, 2, 0)"
    if len(shape) == 3 and shape[0 if first else -1] == 4:
        return f"give {wanted}: drop the alpha channel with {'image[:3]' if first else 'image[..., :3]'}"
    return ACCEPTED_FORMS
