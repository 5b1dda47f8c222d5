"""Deformable attention as TensorRT's plugin in an ONNX file, in place of standard operators.

`MultiscaleDeformableAttnPlugin_TRT` (TensorRT's open-source plugins) takes the plain form without a padding mask:

    value (B, N, M, D), spatial_shapes (L, 2) int32, level_start_index (L,) int32,
    sampling_locations (B, Q, M, L, P, 2), attention_weights (B, Q, M, L, P)   ->   (B, Q, M, D)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from sparse_detr.errors import UserError
from sparse_detr.ops import available_backends, gather, locate_samples

PLUGINS = ("tensorrt",)
NODE, DOMAIN = "MultiscaleDeformableAttnPlugin_TRT", "trt.plugins"
ATTRIBUTES = {"plugin_version": "1", "plugin_namespace": ""}

_library = torch.library.Library("sparse_detr_export", "DEF")
_library.define(
    "tensorrt_attention(Tensor value, Tensor spatial_shapes, Tensor level_start_index, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor"
)


def _attend(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    flat = gather.deformable_attention(value, locations, weights, None, None, shapes.flatten().tolist())
    return flat.unflatten(-1, value.shape[2:])


def _fake(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2], value.shape[3])


_library.impl("tensorrt_attention", _attend, "CompositeExplicitAutograd")
torch.library.register_fake("sparse_detr_export::tensorrt_attention", _fake, lib=_library)


def require_op() -> None:
    """Raise a `UserError` unless a trace on the CPU holds the op of this package, which the plugin replaces."""
    if missing := available_backends()["cpu"]:
        raise UserError(f"the plugin takes the place of the op's CPU kernel, which is not available: {missing}")


def with_plugin(program: ExportedProgram) -> ExportedProgram:
    """Return the program with the plugin's op in place of this package's op."""
    ops = torch.ops.sparse_detr
    return program.run_decompositions(
        {ops.deformable_attention.default: _as_plugin, ops.deformable_attention_backward.default: _products}
    )


def translations() -> dict[Callable, Callable]:
    """Return how the ONNX exporter writes the plugin's op."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    inputs = {"value": "T", "spatial_shapes": "I", "level_start_index": "I", "locations": "T", "weights": "T"}
    schema = OpSchema(
        NODE,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(name, kind) for name, kind in inputs.items()],
        outputs=[OpSchema.FormalParameter("attended", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], ""), ("I", ["tensor(int32)"], "")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.STRING) for name in ATTRIBUTES],
    )
    node = Op(Opset(DOMAIN, 1), NODE, schema)

    def write(value: Any, shapes: Any, starts: Any, locations: Any, weights: Any) -> Any:
        return node(value, shapes, starts, locations, weights, **ATTRIBUTES)

    return {torch.ops.sparse_detr_export.tensorrt_attention.default: write}


def _as_plugin(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    sizes = _sizes(value, spatial_shapes)
    if reference_points is not None:
        points, weights = locate_samples(reference_points, points, weights, sizes)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    areas = sizes[:, 0] * sizes[:, 1]
    first = (areas.cumsum(0) - areas).int()
    attention = torch.ops.sparse_detr_export.tensorrt_attention
    return attention(value, sizes.int(), first, points, weights).flatten(2)


def _products(
    grad_output: Tensor,
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
    *needs: bool,
) -> tuple[Tensor, ...]:
    """Return the products of samples and queries, which an inference needs of the op's gradient; no other part."""
    products = gather.products_at(value, points, grad_output, padding_mask, _sizes(value, spatial_shapes))
    return value.new_empty(0), torch.zeros_like(points), products, points.new_empty(0)


def _sizes(value: Tensor, spatial_shapes: Sequence[int]) -> Tensor:
    """Return (h, w) of every level, (L, 2) long; `torch.tensor` does not work within a decomposition."""
    return torch.cat([value.new_full((1,), side, dtype=torch.long) for side in spatial_shapes]).unflatten(0, (-1, 2))
