"""Checks of the public functions' arguments, which name the argument that does not fit the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
VALUE_DTYPES = (torch.float32, torch.float64, *HALF)

Shapes = Sequence[tuple[int, int]]


def flatten_shapes(spatial_shapes: Shapes, *, num_levels: int, samples_name: str) -> list[int]:
    """h0, w0, h1, w1, ..."""
    if isinstance(spatial_shapes, Tensor):
        raise ValueError("spatial_shapes must be pairs (h, w) of numbers, got a tensor; use its tolist() once a batch")
    if any(len(pair) != 2 or pair[0] < 1 or pair[1] < 1 for pair in spatial_shapes):
        raise ValueError(f"spatial_shapes must be pairs (h, w) of at least 1, got {list(spatial_shapes)}")
    if num_levels != len(spatial_shapes):
        raise ValueError(f"{samples_name} has {num_levels} levels, spatial_shapes has {len(spatial_shapes)}")
    # A size of a tensor is a tensor while torch.jit traces, which takes no list of them.
    return [int(size) if isinstance(size, Tensor) else size for pair in spatial_shapes for size in pair]


def as_pairs(flat_shapes: Sequence[int]) -> list[tuple[int, int]]:
    """(h, w) of every level, from h0, w0, h1, w1, ..."""
    return list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))


def check_value(value: Tensor, spatial_shapes: Shapes, samples: Tensor, samples_name: str) -> None:
    """(B, N, M, D), with the images and heads of the samples and the tokens of the levels."""
    batch, heads = samples.shape[0], samples.shape[2]
    if value.dim() != 4 or value.shape[0] != batch or value.shape[2] != heads:
        raise ValueError(
            f"value must be (B, N, M, D) with the {batch} images and {heads} heads of {samples_name}, "
            f"got {tuple(value.shape)}"
        )
    if value.dtype not in VALUE_DTYPES:
        raise ValueError(f"value must be float32, float64, bfloat16 or float16, got {value.dtype}")
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens:
        raise ValueError(
            f"value has {value.shape[1]} tokens, but spatial_shapes {list(spatial_shapes)} add up to {tokens}"
        )


def check_samples(points: Tensor, weights: Tensor, points_name: str, weights_name: str) -> None:
    """(B, Q, M, L, P, 2) and (B, Q, M, L, P), of at least one level and point."""
    if points.dim() != 6 or points.shape[-1] != 2:
        raise ValueError(f"{points_name} must be (B, Q, M, L, P, 2), got {tuple(points.shape)}")
    if 0 in points.shape[3:5]:
        raise ValueError(f"{points_name} must have at least one level and one point, got {tuple(points.shape)}")
    if weights.shape != points.shape[:-1]:
        raise ValueError(
            f"{weights_name} must have the shape {tuple(points.shape[:-1])} of {points_name}, "
            f"got {tuple(weights.shape)}"
        )


def check_reference_points(reference_points: Tensor, offsets: Tensor) -> None:
    """(B, Q, L, 2|4)."""
    batch, queries, _, levels = offsets.shape[:4]
    if reference_points.shape[:-1] != (batch, queries, levels) or reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            f"reference_points must be ({batch}, {queries}, {levels}, 2 or 4) as sampling_offsets is, "
            f"got {tuple(reference_points.shape)}"
        )


def check_padding_mask(padding_mask: Tensor | None, value: Tensor) -> None:
    """(B, N) bool."""
    if padding_mask is None:
        return
    if padding_mask.dtype != torch.bool or padding_mask.shape != value.shape[:2]:
        raise ValueError(
            f"padding_mask must be bool of the shape {tuple(value.shape[:2])}, "
            f"got {padding_mask.dtype} of {tuple(padding_mask.shape)}"
        )
    check_device("padding_mask", padding_mask, value, "value")


def geometry(name: str, tensor: Tensor, like: Tensor, like_name: str) -> Tensor:
    """A tensor of geometry or weights in the dtype that kernels compute with: float64 if `like` is, else float32.

    Half precision is widened.
    """
    check_device(name, tensor, like, like_name)
    compute = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != compute and tensor.dtype not in HALF:
        raise ValueError(
            f"{name} must be {compute} or half precision where {like_name} is {like.dtype}, got {tensor.dtype}"
        )
    return tensor.to(compute)


def check_device(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """The two are on one device."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but {like_name} is on {like.device}")
