"""The public functions: they check and widen their arguments, then call the backend that fits."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sparse_detr.ops import argument_checks, gather, library, products, reference
from sparse_detr.ops.argument_checks import Shapes
from sparse_detr.ops.backends import NAMESPACES, PLAIN, choose_backend

MODULES: dict[str, ModuleType] = {"reference": reference, "gather": gather}


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    padding_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Sum bilinear samples of `value` around every query, weighted (Deformable DETR, section 4.1).

    A location (x, y) in [0, 1] falls on pixel coordinate (x * w - 0.5, y * h - 0.5) of a level. What lies outside of
    the map reads as zero, and so does a location that is infinite or not a number.

    Sums are in float32, or in float64 for a float64 value. Under autocast the value is cast, locations and weights are
    not. On a GPU the gradient of the value is added up in an order, and so has last bits, that differ from run to run,
    unless `torch.use_deterministic_algorithms(True)` is set.

    Args:
        value: (B, N, M, D), levels one after the other, rows within a level; float32, float64, bfloat16 or float16.
        spatial_shapes: (h, w) of every level.
        sampling_locations: (B, Q, M, L, P, 2), as (x, y).
        attention_weights: (B, Q, M, L, P).
        padding_mask: (B, N) bool, True on tokens that read as zero whatever they hold.
        backend: `reference`, `gather`, `cpu`, `triton` or `cuda`; see `sparse_detr.ops.backends`.

    Returns:
        (B, Q, M * D), in the dtype of `value`.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the backend that was asked for is not available.
    """
    argument_checks.check_samples(sampling_locations, attention_weights, "sampling_locations", "attention_weights")
    shapes = argument_checks.flatten_shapes(
        spatial_shapes, num_levels=sampling_locations.shape[3], samples_name="sampling_locations"
    )
    argument_checks.check_value(value, spatial_shapes, sampling_locations, "sampling_locations")
    argument_checks.check_padding_mask(padding_mask, value)
    locations = argument_checks.geometry("sampling_locations", sampling_locations, value, "value")
    weights = argument_checks.geometry("attention_weights", attention_weights, value, "value")
    return _attend(value, locations, weights, None, padding_mask, shapes, backend)


def fused_deformable_attention(
    value: Tensor,
    spatial_shapes: Shapes,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    *,
    padding_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Compute `multi_scale_deformable_attention` from a network's outputs: one kernel does softmax and locations too.

    Args:
        value, spatial_shapes, padding_mask, backend: as for `multi_scale_deformable_attention`.
        reference_points: (B, Q, L, 2), points that offsets in pixels are added to, or (B, Q, L, 4), boxes cxcywh that
            offsets are relative to: P pixels of offset are half the box.
        sampling_offsets: (B, Q, M, L, P, 2), as (x, y).
        attention_logits: (B, Q, M, L, P), before the softmax over L * P.

    Returns:
        (B, Q, M * D), in the dtype of `value`.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the backend that was asked for is not available.
    """
    argument_checks.check_samples(sampling_offsets, attention_logits, "sampling_offsets", "attention_logits")
    shapes = argument_checks.flatten_shapes(
        spatial_shapes, num_levels=sampling_offsets.shape[3], samples_name="sampling_offsets"
    )
    argument_checks.check_value(value, spatial_shapes, sampling_offsets, "sampling_offsets")
    argument_checks.check_reference_points(reference_points, sampling_offsets)
    argument_checks.check_padding_mask(padding_mask, value)
    offsets = argument_checks.geometry("sampling_offsets", sampling_offsets, value, "value")
    logits = argument_checks.geometry("attention_logits", attention_logits, value, "value")
    references = argument_checks.geometry("reference_points", reference_points, value, "value")
    return _attend(value, offsets, logits, references, padding_mask, shapes, backend)


def sample_products(
    value: Tensor,
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    query: Tensor,
    *,
    padding_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply every bilinear sample of `value` with its query: the logits of attention whose keys are the samples.

    No sample is stored. The product of a query and a sample is the derivative of `multi_scale_deformable_attention` by
    the weight of that sample, if the query takes the place of the output's gradient; so the kernels are those of that
    op and of its gradient. The result can be differentiated once.

    Args:
        value, spatial_shapes, sampling_locations, padding_mask, backend: as for `multi_scale_deformable_attention`.
        query: (B, Q, M * D), in the dtype of `value`.

    Returns:
        (B, Q, M, L, P): float64 if the value is, else float32.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the backend that was asked for is not available.
    """
    argument_checks.check_points(sampling_locations, "sampling_locations")
    shapes = argument_checks.flatten_shapes(
        spatial_shapes, num_levels=sampling_locations.shape[3], samples_name="sampling_locations"
    )
    argument_checks.check_value(value, spatial_shapes, sampling_locations, "sampling_locations")
    argument_checks.check_padding_mask(padding_mask, value)
    argument_checks.check_query(query, value, sampling_locations)
    locations = argument_checks.geometry("sampling_locations", sampling_locations, value, "value")
    name = choose_backend(value, backend)
    value, locations = library.autocast_dtypes(value, locations)  # type: ignore[assignment]
    query = query.to(value.dtype)
    if name in PLAIN:
        return MODULES[name].sample_products(value, locations, query, padding_mask, shapes)
    return products.sample_products(NAMESPACES[name], value, locations, query, padding_mask, shapes)


def splat_attention(
    spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    pixel_offset: float = -0.5,
    backend: str | None = None,
) -> Tensor:
    """Add every attention weight to the four tokens that its sample was interpolated from (Sparse DETR, appendix A.2).

    The result is the same in every run. The kernels have no derivative: where one is needed, the automatic choice is
    `reference`.

    Args:
        spatial_shapes: (h, w) of every level.
        sampling_locations: (B, Q, M, L, P, 2), as (x, y) in [0, 1].
        attention_weights: (B, Q, M, L, P).
        pixel_offset: pixel coordinate = location * size + offset. -0.5 is where the attention reads; 0 is what the
            public Sparse DETR does, half a pixel to the right and below.
        backend: as for `multi_scale_deformable_attention`.

    Returns:
        (B, N), summed over queries, heads and points; float64 if the locations are, else float32. What falls outside of
        a level is dropped.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit the others.
        RuntimeError: the backend that was asked for is not available.
    """
    argument_checks.check_samples(sampling_locations, attention_weights, "sampling_locations", "attention_weights")
    shapes = argument_checks.flatten_shapes(
        spatial_shapes, num_levels=sampling_locations.shape[3], samples_name="sampling_locations"
    )
    like = "sampling_locations"
    locations = argument_checks.geometry("sampling_locations", sampling_locations, sampling_locations, like)
    weights = argument_checks.geometry("attention_weights", attention_weights, sampling_locations, like)
    differentiable = torch.is_grad_enabled() and (locations.requires_grad or weights.requires_grad)
    name = choose_backend(locations, backend, differentiable=differentiable)
    if name in PLAIN:
        return reference.splat_attention(locations, weights, shapes, pixel_offset)
    return library.op(NAMESPACES[name], "splat_attention")(locations, weights, shapes, pixel_offset)


def _attend(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    shapes: list[int],
    backend: str | None,
) -> Tensor:
    name = choose_backend(value, backend)
    if name in PLAIN:
        tensors = library.autocast_dtypes(value, points, weights, reference_points)
        return MODULES[name].deformable_attention(*tensors, padding_mask, shapes)
    attention = library.op(NAMESPACES[name], "deformable_attention")
    return attention(value, points, weights, reference_points, padding_mask, shapes)
