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
from sparse_detr.ops.argument_checks import as_pairs

PLUGINS = ("tensorrt",)
NODE, DOMAIN, VERSION = "MultiscaleDeformableAttnPlugin_TRT", "trt.plugins", "1"

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
    from onnxscript.values import Opset

    operators = Opset(DOMAIN, 1)

    def write(value: Any, shapes: Any, starts: Any, locations: Any, weights: Any) -> Any:
        node = getattr(operators, NODE)
        return node(value, shapes, starts, locations, weights, plugin_version=VERSION, plugin_namespace="")

    return {torch.ops.sparse_detr_export.tensorrt_attention.default: write}


def _as_plugin(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    shapes = as_pairs(spatial_shapes)
    if reference_points is not None:
        points, weights = locate_samples(reference_points, points, weights, shapes)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    starts, end = [], 0
    for height, width in shapes:
        starts.append(end)
        end = end + height * width
    sizes, first = (torch.tensor(x, device=value.device, dtype=torch.int32) for x in (shapes, starts))
    attention = torch.ops.sparse_detr_export.tensorrt_attention
    return attention(value, sizes, first, points, weights).flatten(2)


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
    products = gather.sample_products(value, points, grad_output, padding_mask, spatial_shapes)
    return value.new_empty(0), torch.zeros_like(points), products, points.new_empty(0)
