"""The ops as torch.library knows them: schemas, shapes, gradients, autocast and vmap. The kernels are elsewhere.

Two namespaces hold the same ops: `sparse_detr`, whose kernels for CPU and CUDA tensors are in the native libraries, and
`sparse_detr_triton`. In letters: B images, N tokens, Q queries, M heads, D channels a head, L levels, P points.

    value             (B, N, M, D) float32, float64, bfloat16 or float16
    points            plain form: sampling locations (B, Q, M, L, P, 2) in [0, 1]; fused form: offsets
    weights           plain form: attention weights (B, Q, M, L, P); fused form: logits
    reference_points  (B, Q, L, 2 or 4) in the fused form; None makes the form plain
    padding_mask      (B, N) bool, True where the value reads as zero
    spatial_shapes    h0, w0, h1, w1, ...

Points, weights and reference points are float32, or float64 with a float64 value. The output is (B, Q, M * D) in the
value's dtype. A gradient that is not needed comes back with the shape (0,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sparse_detr.ops.argument_checks import as_pairs

NAMESPACES = ("sparse_detr", "sparse_detr_triton")
AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
SCHEMAS = {
    "deformable_attention": (
        "(Tensor value, Tensor points, Tensor weights, Tensor? reference_points, Tensor? padding_mask, "
        "SymInt[] spatial_shapes) -> Tensor"
    ),
    "deformable_attention_backward": (
        "(Tensor grad_output, Tensor value, Tensor points, Tensor weights, Tensor? reference_points, "
        "Tensor? padding_mask, SymInt[] spatial_shapes, bool need_value, bool need_samples, bool need_reference, "
        "bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "splat_attention": "(Tensor locations, Tensor weights, SymInt[] spatial_shapes, float pixel_offset) -> Tensor",
}
SECOND_DERIVATIVE = (
    "the gradient of deformable attention has no derivative; call the function with backend='reference', which can be "
    "differentiated twice if grid_sample can in this PyTorch"
)
SPLAT_DERIVATIVE = "the kernel of splat_attention has no derivative; call it with backend='reference', which has"
_libraries: dict[str, torch.library.Library] = {}


def op(namespace: str, name: str) -> torch._ops.OpOverload:
    """Return an op of SCHEMAS."""
    return getattr(getattr(torch.ops, namespace), name).default


def define(namespace: str) -> None:
    """Define the ops of a namespace, without kernels."""
    library = _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        qualified = f"{namespace}::{name}"
        torch.library.register_fake(qualified, FAKE[name], lib=library)
        torch.library.register_vmap(qualified, _refuse_vmap(qualified), lib=library)
    attention, backward, splat = (op(namespace, name) for name in SCHEMAS)
    torch.library.register_autograd(attention, _gradient(backward), setup_context=_save, lib=library)
    torch.library.register_autograd(backward, _refuse_gradient(SECOND_DERIVATIVE), lib=library)
    torch.library.register_autograd(splat, _refuse_gradient(SPLAT_DERIVATIVE), lib=library)
    for device_type, key in AUTOCAST_DEVICES.items():
        library.impl("deformable_attention", _autocast_attention(attention, device_type), key)
        library.impl("splat_attention", _autocast_splat(splat, device_type), key)


@cache
def register_kernels(namespace: str, kernels: ModuleType, device_types: tuple[str, ...]) -> None:
    """Make a module's functions, named as in SCHEMAS, the kernels of a namespace; once in a process."""
    for name in SCHEMAS:
        for device_type in device_types:
            _libraries[namespace].impl(name, getattr(kernels, name), device_type.upper())


# --- Shapes ------------------------------------------------------------------------------------------------------


def _fake_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    return value.new_empty(value.shape[0], points.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(
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
) -> tuple[Tensor, ...]:
    reference = points if reference_points is None else reference_points
    wanted = (
        (value, need_value),
        (points, need_samples),
        (weights, need_samples),
        (reference, need_reference and reference_points is not None),
    )
    return tuple(tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in wanted)


def _fake_splat(locations: Tensor, weights: Tensor, spatial_shapes: Sequence[int], pixel_offset: float) -> Tensor:
    return weights.new_empty(weights.shape[0], sum(height * width for height, width in as_pairs(spatial_shapes)))


FAKE: dict[str, Callable[..., Any]] = {
    "deformable_attention": _fake_attention,
    "deformable_attention_backward": _fake_backward,
    "splat_attention": _fake_splat,
}


# --- Gradients ---------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.spatial_shapes = inputs
    ctx.save_for_backward(*tensors)


def _gradient(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Compute the gradients of deformable attention with their own op."""

    def run(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, points, weights, reference_points = ctx.needs_input_grad[:4]
        gradients = backward(
            grad_output,
            *ctx.saved_tensors,
            ctx.spatial_shapes,
            value,
            points or weights,
            reference_points,
            torch.are_deterministic_algorithms_enabled(),
        )
        needed = (value, points, weights, reference_points)
        return (*(x if need else None for x, need in zip(gradients, needed, strict=True)), None, None)

    return run


def _refuse_gradient(message: str) -> Callable[..., Any]:
    def run(ctx: Any, *grad_outputs: Tensor) -> None:
        raise RuntimeError(message)

    return run


def _refuse_vmap(qualified: str) -> Callable[..., Any]:
    def run(info: Any, in_dims: Any, *arguments: Any) -> None:
        raise RuntimeError(
            f"{qualified} has no vmap; put the mapped dimension into the batch, which every argument has, "
            "or call the function with backend='reference'"
        )

    return run


# --- Autocast ----------------------------------------------------------------------------------------------------


def autocast_dtypes(value: Tensor, *geometry: Tensor | None) -> list[Tensor | None]:
    """Cast the value as autocast says, if it is active; cast the geometry, which needs more bits, to float32.

    As everywhere in autocast, float64 stays what it is, and so does everything on `meta`, which has no autocast.
    """
    device_type = value.device.type
    # Not torch.amp.is_autocast_available, which breaks the graph of torch.compile before PyTorch 2.10.
    enabled = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if value.dtype == torch.float64 or not enabled:
        return [value, *geometry]
    return [value.to(torch.get_autocast_dtype(device_type)), *(None if x is None else x.float() for x in geometry)]


def _autocast_attention(attention: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def run(
        value: Tensor,
        points: Tensor,
        weights: Tensor,
        reference_points: Tensor | None,
        padding_mask: Tensor | None,
        spatial_shapes: Sequence[int],
    ) -> Tensor:
        tensors = autocast_dtypes(value, points, weights, reference_points)
        with torch.autocast(device_type, enabled=False):
            return attention(*tensors, padding_mask, spatial_shapes)

    return run


def _autocast_splat(splat: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def run(locations: Tensor, weights: Tensor, spatial_shapes: Sequence[int], pixel_offset: float) -> Tensor:
        if locations.dtype != torch.float64:
            locations, weights = locations.float(), weights.float()
        with torch.autocast(device_type, enabled=False):
            return splat(locations, weights, spatial_shapes, pixel_offset)

    return run


for _namespace in NAMESPACES:
    define(_namespace)
