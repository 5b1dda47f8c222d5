"""Multi-scale deformable attention in Triton: a forward, a backward and a splat kernel, without a build step.

The formulas are those of `ops/csrc/arithmetic.h`. One program handles BLOCK_Q queries of one head, in a loop over
levels and points. The geometry of a sample is computed once for a query; only reading and adding are done for every
channel, with neighbouring threads on neighbouring channels. Consecutive programs have the same queries and different
heads, so programs that run at the same time do not add to the same cells.

The kernels get image sizes as a small tensor of levels, so a new image size needs no compilation. Nothing here waits
for the GPU.

This module is imported when the backend is chosen, not with the package. With TRITON_INTERPRET=1 set before, the same
kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_detr.ops import argument_checks
from sparse_detr.ops.argument_checks import as_pairs

# The sizes of programs. Not tuned on a GPU; read at every call, so that a benchmark can vary them.
# Bytes of the value vectors of one program: a thread holds one vector of 16 bytes of channels.
BYTES_PER_PROGRAM = 4 * 32 * 16
NUM_WARPS = 4
# A limit for few channels, where the bytes above would allow so many queries that a decoder cannot fill the GPU.
LARGEST_BLOCK_Q = 32
# Points of a level that are unrolled, so that their reads overlap in time.
UNROLLED_POINTS = 4
SPLAT_BLOCK = 128
# A sum in fixed point stays below 2 ** FIXED_POINT_BITS; an int64 also needs the sign and a bit for rounding.
FIXED_POINT_BITS = 62


def deformable_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    """Return the weighted samples of `value`, (B, Q, M * D). See `sparse_detr.ops.library` for the arguments."""
    argument_checks.check_kernel_attention(value, points, weights, reference_points, padding_mask, spatial_shapes)
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    batch, queries, heads = points.shape[:3]
    output = value.new_empty(batch, queries, heads * value.shape[3])
    if not output.numel():
        return output
    options = _options(value, points, reference_points, element_size=value.element_size())
    with _on_device_of(value):
        _forward_kernel[_grid(points, options)](
            output,
            value,
            points,
            weights,
            _contiguous(reference_points),
            _mask_bytes(padding_mask),
            _level_table(spatial_shapes, value.device),
            queries,
            value.shape[1],
            **options,
        )
    return output


def deformable_attention_backward(
    grad_output: Tensor,
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
    need_value: bool,
    need_samples: bool,
    need_reference: bool,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of value, points, weights and reference points; shape (0,) for those that are not needed.

    The gradient of the value is accumulated in the dtype of `points` by atomic additions, whose order differs from run
    to run. With `deterministic` it is accumulated in 64 bit fixed point, where the order does not matter; but one
    infinite or NaN term makes the whole gradient of the value NaN.
    """
    argument_checks.check_kernel_attention(value, points, weights, reference_points, padding_mask, spatial_shapes)
    argument_checks.check_grad_output(grad_output, value, points)
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    batch, queries, heads, _, per_level = weights.shape
    launch = value.numel() and weights.numel()
    allocate = torch.empty_like if launch else torch.zeros_like
    fixed, accumulated = deterministic and need_value, points.dtype
    grad_value = torch.zeros_like(value, dtype=torch.int64 if fixed else accumulated) if need_value else None
    grad_points = allocate(points) if need_samples else None
    grad_weights = allocate(weights) if need_samples else None
    grad_reference = None
    if reference_points is not None and need_reference:
        # One for every head; they are added up below in a fixed order.
        grad_reference = reference_points.new_zeros(heads, *reference_points.shape)
    scale = inverse = None
    if fixed and launch:
        # In float64, where largest gradient times largest weight, even of different samples, does not overflow.
        largest = grad_output.abs().amax().double() * _largest_weight(weights, reference_points is not None)
        scale, inverse = _fixed_point(largest, accumulated, num_terms=queries * per_level)
    if launch and (need_value or need_samples or need_reference):
        # The terms have the accumulated dtype, so the vector of a thread is sized for it.
        options = _options(value, points, reference_points, element_size=points.element_size())
        with _on_device_of(value):
            _backward_kernel[_grid(points, options)](
                grad_output.contiguous(),
                value,
                points,
                weights,
                _contiguous(reference_points),
                _mask_bytes(padding_mask),
                _level_table(spatial_shapes, value.device),
                grad_value,
                grad_points,
                grad_weights,
                grad_reference,
                scale,
                batch,
                queries,
                value.shape[1],
                **options,
            )
    if grad_value is not None:
        grad_value = (grad_value if inverse is None else grad_value * inverse).to(value.dtype)
    if grad_reference is not None:
        grad_reference = grad_reference.sum(0)
    return (
        value.new_empty(0) if grad_value is None else grad_value,
        points.new_empty(0) if grad_points is None else grad_points,
        weights.new_empty(0) if grad_weights is None else grad_weights,
        points.new_empty(0) if grad_reference is None else grad_reference,
    )


def splat_attention(locations: Tensor, weights: Tensor, spatial_shapes: Sequence[int], pixel_offset: float) -> Tensor:
    """Return the weight that every token receives, (B, N). Sums are in fixed point, so their order does not matter."""
    argument_checks.check_kernel_samples(locations, weights, spatial_shapes)
    batch, queries, heads, levels, per_level = weights.shape
    num_tokens = sum(height * width for height, width in as_pairs(spatial_shapes))
    if not weights.numel():
        return weights.new_zeros(batch, num_tokens)
    locations, weights = locations.contiguous(), weights.contiguous()
    received = weights.new_zeros(batch, num_tokens, dtype=torch.int64)
    samples = queries * heads * levels * per_level
    largest = _largest_weight(weights, logits=False)
    scale, inverse = _fixed_point(largest, weights.dtype, num_terms=queries * heads * per_level)
    with _on_device_of(weights):
        _splat_kernel[(triton.cdiv(samples, SPLAT_BLOCK) * batch,)](
            received,
            locations,
            weights,
            _level_table(spatial_shapes, weights.device),
            scale,
            samples,
            num_tokens,
            pixel_offset,
            L=levels,
            P=per_level,
            BLOCK=SPLAT_BLOCK,
            num_warps=NUM_WARPS,
        )
    return received * inverse


def _options(value: Tensor, points: Tensor, reference_points: Tensor | None, *, element_size: int) -> dict:
    """Return the compile-time options of the kernels: the shape of a head and the number of queries of a program."""
    tokens, heads, channels = value.shape[1:]
    levels, per_level = points.shape[3:5]
    block_d = triton.next_power_of_2(channels)
    block_q = triton.next_power_of_2(max(1, BYTES_PER_PROGRAM // (block_d * element_size)))
    return dict(
        M=heads,
        D=channels,
        L=levels,
        P=per_level,
        COORDINATES=0 if reference_points is None else reference_points.shape[-1],
        WIDE=tokens * heads * channels >= 2**31,
        BLOCK_Q=min(block_q, LARGEST_BLOCK_Q),
        BLOCK_D=block_d,
        BLOCK_S=triton.next_power_of_2(levels * per_level),
        UNROLL=min(per_level, UNROLLED_POINTS),
        num_warps=NUM_WARPS,
        num_stages=1,
    )


def _grid(points: Tensor, options: dict) -> tuple[int]:
    batch, queries, heads = points.shape[:3]
    return (batch * triton.cdiv(queries, options["BLOCK_Q"]) * heads,)


def _level_table(spatial_shapes: Sequence[int], device: torch.device) -> Tensor:
    """Return (L, 3) int32: height, width and first token of every level."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _written_level_table(spatial_shapes, device)  # of the graph's memory, so not for calls outside of it
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _cached_level_table(tuple(map(int, spatial_shapes)), device, stream)[-1]


@lru_cache(maxsize=1024)
def _cached_level_table(spatial_shapes: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Return the table on the host and on the device; one for each stream, so that kernels run after the copy."""
    table = torch.tensor(_level_rows(spatial_shapes), dtype=torch.int32)
    if device.type != "cuda":
        return table, table
    table = table.pin_memory()
    return table, table.to(device, non_blocking=True)


def _written_level_table(spatial_shapes: Sequence[int], device: torch.device) -> Tensor:
    """Write the table without a copy: a CUDA graph records written numbers, but of a copy only the source address."""
    table = torch.empty(len(spatial_shapes) // 2, 3, dtype=torch.int32, device=device)
    for cell, number in zip(table.view(-1), chain.from_iterable(_level_rows(spatial_shapes)), strict=True):
        cell.fill_(number)
    return table


def _level_rows(spatial_shapes: Sequence[int]) -> list[tuple[int, int, int]]:
    rows, start = [], 0
    for height, width in as_pairs(spatial_shapes):
        rows.append((height, width, start))
        start += height * width
    return rows


def _largest_weight(weights: Tensor, logits: bool) -> Tensor:
    """Return a bound on the weights, one number in float64; infinite or NaN if a weight is."""
    if not logits:
        return weights.abs().amax().double()
    # Probabilities are at most 1, and finite if the largest logit of every query is finite.
    largest = weights.flatten(-2).amax(-1)
    return torch.where(largest.isfinite().all(), 1.0, torch.nan).double()


def _fixed_point(largest: Tensor, dtype: torch.dtype, num_terms: int) -> tuple[Tensor, Tensor]:
    """Return two powers of two: a factor to integers, such that the sum of terms up to `largest` fits, and its inverse.

    The second is NaN where `largest` is infinite or NaN.
    """
    finite = largest.isfinite()
    exponent = torch.frexp(torch.where(finite, largest, 0) * num_terms).exponent
    limit = 126 if dtype == torch.float32 else 1000
    power = (FIXED_POINT_BITS - exponent).clamp(-limit, limit).double()
    return power.exp2().to(dtype), torch.where(finite, (-power).exp2(), torch.nan).to(dtype)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _mask_bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# Kernels. Letters: B images, Q queries, M heads, L levels, P points, N tokens, D channels of a head.


@triton.jit
def _program(num_queries, M: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Return image, head and queries of this program, and which of these queries exist."""
    blocks = (num_queries + BLOCK_Q - 1) // BLOCK_Q
    program = tl.program_id(0)
    head = program % M
    query = (program // M % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    image = (program // M // blocks).to(tl.int64)
    return image, head, query, query < num_queries


@triton.jit
def _level(levels, level):
    """Return height, width and first token of a level."""
    return tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1), tl.load(levels + 3 * level + 2)


@triton.jit
def _softmax_terms(weights, sample_row, query_exists, SAMPLES: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return for every query the largest logit, and one over the sum of the exponentials."""
    sample = tl.arange(0, BLOCK_S)
    exists = query_exists[:, None] & (sample < SAMPLES)[None, :]
    logits = tl.load(weights + sample_row[:, None] + sample[None, :], mask=exists, other=float("-inf"))
    largest = tl.where(query_exists, tl.max(logits, 1), 0.0)
    return largest, 1.0 / tl.where(query_exists, tl.sum(tl.exp(logits - largest[:, None]), 1), 1.0)


@triton.jit
def _frame(reference_points, reference_row, query_exists, height, width, P: tl.constexpr, COORDINATES: tl.constexpr):
    """Return scales and origins: the pixel coordinate of a number x of `points` is x * scale_x + origin_x; same for y.

    COORDINATES is 0 for sampling locations, 2 for reference points (x, y), to which offsets in pixels are added, and 4
    for reference boxes (x, y, w, h), of which an offset of P is half the width or height.
    """
    scale_x = width
    scale_y = height
    origin_x = -0.5
    origin_y = -0.5
    if COORDINATES:
        centre_x, centre_y = _read_pair(reference_points, reference_row, query_exists)
        origin_x = centre_x * width - 0.5
        origin_y = centre_y * height - 0.5
        scale_x = 1.0
        scale_y = 1.0
        if COORDINATES == 4:
            extent_x, extent_y = _read_pair(reference_points, reference_row + 2, query_exists)
            scale_x = extent_x * (width * (0.5 / P))
            scale_y = extent_y * (height * (0.5 / P))
    return origin_x, origin_y, scale_x, scale_y


@triton.jit
def _read_pair(pairs, address, query_exists):
    """Read two neighbouring numbers in one load; for a missing query infinity, which is outside of every level."""
    coordinate = tl.arange(0, 2)[None, :]
    return tl.split(tl.load(pairs + address[:, None] + coordinate, mask=query_exists[:, None], other=float("inf")))


@triton.jit
def _footprint(x, y, height, width):
    """Return whether a sample touches the level, its top left cell, and the distances from that cell, in [0, 1)."""
    # False for NaN. A coordinate that does not touch the level becomes 0, so that it can be an integer.
    touched = (x >= -1.0) & (y >= -1.0) & (x < width) & (y < height)
    x = tl.where(touched, x, 0.0)
    y = tl.where(touched, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return touched, top.to(tl.int32), left.to(tl.int32), x - left, y - top


@triton.jit
def _corner(touched, row, column, height, width, start, CORNER: tl.constexpr):
    """Return the cell of a corner (0 to 3: top left and right, bottom left and right), and whether it is inside."""
    row = row + CORNER // 2
    column = column + CORNER % 2
    inside = touched & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return start + row * width + column, inside


@triton.jit
def _corner_share(right, down, CORNER: tl.constexpr):
    """Return the horizontal and the vertical factor of the share of a corner."""
    horizontal = right if CORNER % 2 else 1.0 - right
    vertical = down if CORNER // 2 else 1.0 - down
    return horizontal, vertical


@triton.jit
def _cell_address(cell, inside, padding_mask, first_token, M: tl.constexpr, D: tl.constexpr, WIDE: tl.constexpr):
    """Return the offset of a cell from the first token of its image, and whether it is inside and not padding."""
    if padding_mask is not None:
        inside = inside & (tl.load(padding_mask + first_token + cell, mask=inside, other=1) == 0)
    if WIDE:
        cell = cell.to(tl.int64)
    return cell * (M * D), inside


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _forward_kernel(
    output,  # (B, Q, M, D)
    value,  # (B, N, M, D)
    points,  # (B, Q, M, L, P, 2)
    weights,  # (B, Q, M, L, P)
    reference_points,  # (B, Q, L, COORDINATES) or None
    padding_mask,  # (B, N) or None
    levels,  # (L, 3)
    num_queries,
    num_tokens,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    COORDINATES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    UNROLL: tl.constexpr,
):
    image, head, query, query_exists = _program(num_queries, M, BLOCK_Q)
    query_row = image * num_queries + query
    sample_row = (query_row * M + head) * (L * P)
    first_token = image * num_tokens
    channel = tl.arange(0, BLOCK_D)[None, :]
    head_value = value + first_token * (M * D) + head * D
    number = points.dtype.element_ty
    if COORDINATES:
        largest, inverse_sum = _softmax_terms(weights, sample_row, query_exists, L * P, BLOCK_S)
    total = tl.zeros([BLOCK_Q, BLOCK_D], number)
    for level in range(L):
        height, width, start = _level(levels, level)
        level_height = height.to(number)
        level_width = width.to(number)
        reference_row = (query_row * L + level) * COORDINATES
        origin_x, origin_y, scale_x, scale_y = _frame(
            reference_points, reference_row, query_exists, level_height, level_width, P, COORDINATES
        )
        for point in tl.range(0, P, loop_unroll_factor=UNROLL):
            sample = sample_row + (level * P + point)
            x, y = _read_pair(points, 2 * sample, query_exists)
            weight = tl.load(weights + sample, mask=query_exists, other=0.0)
            if COORDINATES:
                weight = tl.exp(weight - largest) * inverse_sum
            touched, row, column, right, down = _footprint(
                x * scale_x + origin_x, y * scale_y + origin_y, level_height, level_width
            )
            mean = tl.zeros([BLOCK_Q, BLOCK_D], number)
            for corner in tl.static_range(4):
                cell, inside = _corner(touched, row, column, height, width, start, corner)
                address, inside = _cell_address(cell, inside, padding_mask, first_token, M, D, WIDE)
                horizontal, vertical = _corner_share(right, down, corner)
                read = inside[:, None] & (channel < D)
                corner_value = tl.load(head_value + address[:, None] + channel, mask=read, other=0.0).to(number)
                mean += (horizontal * vertical)[:, None] * corner_value
            total += weight[:, None] * mean
    output_row = (query_row * M + head)[:, None] * D + channel
    tl.store(output + output_row, total.to(output.dtype.element_ty), mask=query_exists[:, None] & (channel < D))


@triton.jit(do_not_specialize=["num_images", "num_queries", "num_tokens"])
def _backward_kernel(
    grad_output,  # (B, Q, M, D)
    value,
    points,
    weights,
    reference_points,
    padding_mask,
    levels,
    grad_value,  # (B, N, M, D) of zeros, integers in fixed point, or None
    grad_points,  # like points, or None
    grad_weights,  # like weights, or None
    grad_reference,  # (M, B, Q, L, COORDINATES) or None
    fixed_point_scale,  # one number, or None
    num_images,
    num_queries,
    num_tokens,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    COORDINATES: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # With g the gradient of the output of a query: the gradients of weight and location of a sample follow from the dot
    # products of its corners with g; the gradient of the value of a corner is g times weight and share.
    image, head, query, query_exists = _program(num_queries, M, BLOCK_Q)
    query_row = image * num_queries + query
    sample_row = (query_row * M + head) * (L * P)
    first_token = image * num_tokens
    channel = tl.arange(0, BLOCK_D)[None, :]
    head_value = value + first_token * (M * D) + head * D
    if grad_value is not None:
        head_grad_value = grad_value + first_token * (M * D) + head * D
    number = points.dtype.element_ty
    SLOPES: tl.constexpr = grad_points is not None or grad_reference is not None
    if COORDINATES:
        largest, inverse_sum = _softmax_terms(weights, sample_row, query_exists, L * P, BLOCK_S)
        expected = tl.zeros([BLOCK_Q], number)
    if grad_points is not None:
        # The gradients of the samples of a query, one column for each; written once, at the end.
        lane = tl.arange(0, BLOCK_S)[None, :]
        column_x = tl.zeros([BLOCK_Q, BLOCK_S], number)
        column_y = tl.zeros([BLOCK_Q, BLOCK_S], number)
        column_weight = tl.zeros([BLOCK_Q, BLOCK_S], number)
    if fixed_point_scale is not None:
        scale = tl.load(fixed_point_scale)
    output_row = (query_row * M + head)[:, None] * D + channel
    grad = tl.load(grad_output + output_row, mask=query_exists[:, None] & (channel < D), other=0.0).to(number)
    for level in range(L):
        height, width, start = _level(levels, level)
        level_height = height.to(number)
        level_width = width.to(number)
        reference_row = (query_row * L + level) * COORDINATES
        origin_x, origin_y, scale_x, scale_y = _frame(
            reference_points, reference_row, query_exists, level_height, level_width, P, COORDINATES
        )
        if grad_reference is not None:
            centre_x = tl.zeros([BLOCK_Q], number)
            centre_y = tl.zeros([BLOCK_Q], number)
            extent_x = tl.zeros([BLOCK_Q], number)
            extent_y = tl.zeros([BLOCK_Q], number)
        for point in tl.range(0, P, loop_unroll_factor=UNROLL):
            sample = sample_row + (level * P + point)
            x, y = _read_pair(points, 2 * sample, query_exists)
            weight = tl.load(weights + sample, mask=query_exists, other=0.0)
            if COORDINATES:
                weight = tl.exp(weight - largest) * inverse_sum
            touched, row, column, right, down = _footprint(
                x * scale_x + origin_x, y * scale_y + origin_y, level_height, level_width
            )
            weighted = weight[:, None] * grad
            grad_weight = tl.zeros([BLOCK_Q], number)
            slope_x = tl.zeros([BLOCK_Q], number)
            slope_y = tl.zeros([BLOCK_Q], number)
            for corner in tl.static_range(4):
                cell, inside = _corner(touched, row, column, height, width, start, corner)
                address, inside = _cell_address(cell, inside, padding_mask, first_token, M, D, WIDE)
                horizontal, vertical = _corner_share(right, down, corner)
                address = address[:, None] + channel
                read = inside[:, None] & (channel < D)
                if SLOPES:
                    corner_value = tl.load(head_value + address, mask=read, other=0.0).to(number)
                    product = tl.sum(corner_value * grad, 1)
                    grad_weight += horizontal * vertical * product
                    slope_x += vertical * product if corner % 2 else -vertical * product
                    slope_y += horizontal * product if corner // 2 else -horizontal * product
                if grad_value is not None:
                    term = (horizontal * vertical)[:, None] * weighted
                    if fixed_point_scale is not None:
                        tl.atomic_add(head_grad_value + address, (term * scale).to(tl.int64), mask=read, sem="relaxed")
                    else:
                        tl.atomic_add(head_grad_value + address, term, mask=read, sem="relaxed")
            if SLOPES:
                # NaN or infinity in the gradient must not reach samples that read nothing.
                grad_weight = tl.where(touched, grad_weight, 0.0)
                slope_x = tl.where(touched, weight * slope_x, 0.0)
                slope_y = tl.where(touched, weight * slope_y, 0.0)
            if grad_points is not None:
                this = lane == level * P + point
                column_x = tl.where(this, tl.where(touched, slope_x * scale_x, 0.0)[:, None], column_x)
                column_y = tl.where(this, tl.where(touched, slope_y * scale_y, 0.0)[:, None], column_y)
                column_weight = tl.where(this, grad_weight[:, None], column_weight)
                if COORDINATES:
                    expected += weight * grad_weight
            if grad_reference is not None:
                centre_x += slope_x
                centre_y += slope_y
                extent_x += tl.where(touched, slope_x * x, 0.0)
                extent_y += tl.where(touched, slope_y * y, 0.0)
        if grad_reference is not None:
            place = grad_reference + (head.to(tl.int64) * num_images * num_queries * L * COORDINATES) + reference_row
            tl.store(place, centre_x * level_width, mask=query_exists)
            tl.store(place + 1, centre_y * level_height, mask=query_exists)
            if COORDINATES == 4:
                tl.store(place + 2, extent_x * (level_width * (0.5 / P)), mask=query_exists)
                tl.store(place + 3, extent_y * (level_height * (0.5 / P)), mask=query_exists)
    if grad_points is not None:
        place = sample_row[:, None] + lane
        exists = query_exists[:, None] & (lane < L * P)
        if COORDINATES:
            logits = tl.load(weights + place, mask=exists, other=float("-inf"))
            probability = tl.exp(logits - largest[:, None]) * inverse_sum[:, None]
            column_weight = probability * (column_weight - expected[:, None])
        tl.store(grad_weights + place, column_weight, mask=exists)
        pair = 2 * place[:, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(grad_points + pair, tl.join(column_x, column_y), mask=exists[:, :, None])


@triton.jit(do_not_specialize=["num_samples", "num_tokens"])
def _splat_kernel(
    received,  # (B, N), integers in fixed point
    locations,  # (B, Q, M, L, P, 2)
    weights,  # (B, Q, M, L, P)
    levels,
    fixed_point_scale,
    num_samples,  # of one image
    num_tokens,
    pixel_offset,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = (num_samples + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    index = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    exists = index < num_samples
    sample = image * num_samples + index
    height, width, start = _level(levels, index // P % L)
    x, y = _read_pair(locations, 2 * sample, exists)
    weight = tl.load(weights + sample, mask=exists, other=0.0) * tl.load(fixed_point_scale)
    level_height = height.to(weight.dtype)
    level_width = width.to(weight.dtype)
    touched, row, column, right, down = _footprint(
        x * level_width + pixel_offset, y * level_height + pixel_offset, level_height, level_width
    )
    for corner in tl.static_range(4):
        cell, inside = _corner(touched, row, column, height, width, start, corner)
        horizontal, vertical = _corner_share(right, down, corner)
        share = (weight * horizontal * vertical).to(tl.int64)
        tl.atomic_add(received + image * num_tokens + cell, share, mask=inside, sem="relaxed")
