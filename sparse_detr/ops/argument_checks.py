"""Checks of the public functions' arguments, which name the argument that does not fit the others."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
VALUE_DTYPES = (torch.float32, torch.float64, *HALF)

# Tokens of an image stay below this, so that kernels count cells in 32 bits; also in ops/csrc/checks.h.
MAX_TOKENS = 2**28
MAX_INT32 = 2**31 - 1

Shapes = Sequence[tuple[int, int]]


def flatten_shapes(spatial_shapes: Shapes, *, num_levels: int, samples_name: str) -> list[int]:
    """Return h0, w0, h1, w1, ... from pairs (h, w), after a check."""
    if isinstance(spatial_shapes, Tensor):
        raise ValueError("spatial_shapes must be pairs (h, w) of numbers, got a tensor; use its tolist() once a batch")
    if any(not hasattr(pair, "__len__") or len(pair) != 2 for pair in spatial_shapes):
        raise ValueError(f"spatial_shapes must be pairs (h, w), got {list(spatial_shapes)}")
    flat = [_whole_number(size) for pair in spatial_shapes for size in pair]
    if any(size < 1 for size in flat):
        raise ValueError(f"spatial_shapes must be pairs (h, w) of at least 1, got {list(spatial_shapes)}")
    check_token_limit(flat)
    if num_levels != len(spatial_shapes):
        raise ValueError(f"{samples_name} has {num_levels} levels, spatial_shapes has {len(spatial_shapes)}")
    return flat


def _whole_number(size: int | Tensor) -> int:
    if isinstance(size, Tensor) and not size.dtype.is_floating_point and size.dtype != torch.bool:
        return int(size)  # a size of a tensor while torch.jit traces, which takes no list of them
    if isinstance(size, (int, torch.SymInt)) and not isinstance(size, bool):
        return size
    if hasattr(size, "__index__") and not isinstance(size, (bool, Tensor)):
        return operator.index(size)
    raise ValueError(f"spatial_shapes must be pairs (h, w) of whole numbers, got {size!r}")


def check_token_limit(flat_shapes: Sequence[int]) -> None:
    """Refuse MAX_TOKENS tokens an image or more. Sizes that a trace leaves open are checked when it runs."""
    if any(not isinstance(size, int) for size in flat_shapes):
        return
    tokens = sum(height * width for height, width in as_pairs(flat_shapes))
    if tokens >= MAX_TOKENS:
        raise ValueError(
            f"spatial_shapes must add up to fewer than {MAX_TOKENS} tokens, got {tokens} from {as_pairs(flat_shapes)}"
        )


def as_pairs(flat_shapes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (h, w) of every level from h0, w0, h1, w1, ..."""
    return list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))


def check_value(value: Tensor, spatial_shapes: Shapes, samples: Tensor, samples_name: str) -> None:
    """Refuse a value that is not (B, N, M, D) with the images and heads of the samples and the tokens of the levels."""
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
    """Refuse other shapes than (B, Q, M, L, P, 2) and (B, Q, M, L, P), with at least one level and one point."""
    check_points(points, points_name)
    if weights.shape != points.shape[:-1]:
        raise ValueError(
            f"{weights_name} must have the shape {tuple(points.shape[:-1])} of {points_name}, "
            f"got {tuple(weights.shape)}"
        )


def check_points(points: Tensor, points_name: str) -> None:
    """Refuse another shape than (B, Q, M, L, P, 2), with at least one level and one point."""
    if points.dim() != 6 or points.shape[-1] != 2:
        raise ValueError(f"{points_name} must be (B, Q, M, L, P, 2), got {tuple(points.shape)}")
    if 0 in points.shape[3:5]:
        raise ValueError(f"{points_name} must have at least one level and one point, got {tuple(points.shape)}")


def check_query(query: Tensor, value: Tensor, points: Tensor) -> None:
    """Refuse a query that is not (B, Q, M * D) in a dtype of values."""
    size = (points.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    if query.shape != size or query.dtype not in VALUE_DTYPES:
        raise ValueError(
            f"query must be {size}, float32, float64, bfloat16 or float16, got {tuple(query.shape)} of {query.dtype}"
        )
    check_same_device("query", query, value, "value")


def check_reference_points(reference_points: Tensor, offsets: Tensor) -> None:
    """Refuse another shape than (B, Q, L, 2|4)."""
    batch, queries, _, levels = offsets.shape[:4]
    if reference_points.shape[:-1] != (batch, queries, levels) or reference_points.shape[-1] not in (2, 4):
        raise ValueError(
            f"reference_points must be ({batch}, {queries}, {levels}, 2 or 4) as sampling_offsets is, "
            f"got {tuple(reference_points.shape)}"
        )


def check_padding_mask(padding_mask: Tensor | None, value: Tensor) -> None:
    """Refuse a mask that is not (B, N) bool."""
    if padding_mask is None:
        return
    if padding_mask.dtype != torch.bool or padding_mask.shape != value.shape[:2]:
        raise ValueError(
            f"padding_mask must be bool of the shape {tuple(value.shape[:2])}, "
            f"got {padding_mask.dtype} of {tuple(padding_mask.shape)}"
        )
    check_same_device("padding_mask", padding_mask, value, "value")


def geometry(name: str, tensor: Tensor, like: Tensor, like_name: str) -> Tensor:
    """Return a tensor of geometry or weights as float64 if `like` is float64, else as float32; kernels compute in it.

    Half precision is widened.
    """
    check_same_device(name, tensor, like, like_name)
    compute = torch.float64 if like.dtype == torch.float64 else torch.float32
    if tensor.dtype != compute and tensor.dtype not in HALF:
        raise ValueError(
            f"{name} must be {compute} or half precision where {like_name} is {like.dtype}, got {tensor.dtype}"
        )
    return tensor.to(compute)


def check_kernel_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> None:
    """Check an operator's arguments for a kernel written in Python, as ops/csrc/checks.h does for native kernels.

    A caller of the operators themselves, such as an exported program, has not passed the public functions' checks.

    Raises:
        ValueError: an argument does not fit the others, or a launch would need numbers of more than 32 bits.
    """
    check_kernel_samples(points, weights, spatial_shapes)
    check_value(value, as_pairs(spatial_shapes), points, "points")
    geometry = {"points": points, "weights": weights, "reference_points": reference_points}
    if reference_points is not None:
        check_reference_points(reference_points, points)
    check_padding_mask(padding_mask, value)
    compute = torch.float64 if value.dtype == torch.float64 else torch.float32
    for name, tensor in geometry.items():
        if tensor is not None and tensor.dtype != compute:
            raise ValueError(f"{name} must be {compute} where value is {value.dtype}, got {tensor.dtype}")
        if tensor is not None:
            check_same_device(name, tensor, value, "value")
    _check_32_bits("channels of all heads", value.shape[2] * value.shape[3])


def check_kernel_samples(points: Tensor, weights: Tensor, spatial_shapes: Sequence[int]) -> None:
    """Check the samples alone, as a part of `check_kernel_attention`."""
    check_samples(points, weights, "points", "weights")
    check_same_device("weights", weights, points, "points")
    if points.dtype not in (torch.float32, torch.float64) or weights.dtype != points.dtype:
        raise ValueError(f"points and weights must be float32 or float64, got {points.dtype} and {weights.dtype}")
    if len(spatial_shapes) % 2:
        raise ValueError(f"spatial_shapes must be h, w of every level, got {list(spatial_shapes)}")
    flatten_shapes(as_pairs(spatial_shapes), num_levels=points.shape[3], samples_name="points")
    _check_32_bits("samples of an image", weights[:1].numel())
    _check_32_bits("heads and queries of all images", points.shape[0] * points.shape[1] * points.shape[2])


def check_grad_output(grad_output: Tensor, value: Tensor, points: Tensor) -> None:
    """Refuse a gradient that is not (B, Q, M * D) in the dtype of the value."""
    size = (points.shape[0], points.shape[1], value.shape[2] * value.shape[3])
    if grad_output.shape != size or grad_output.dtype != value.dtype:
        raise ValueError(
            f"grad_output must be {value.dtype} of the shape {size}, got {grad_output.dtype} of "
            f"{tuple(grad_output.shape)}"
        )
    check_same_device("grad_output", grad_output, value, "value")


def _check_32_bits(what: str, count: int) -> None:
    if count > MAX_INT32:
        raise ValueError(f"the Triton kernels take fewer than 2^31 {what}, got {count}; split the batch")


def check_same_device(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Refuse two tensors on different devices."""
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but {like_name} is on {like.device}")
