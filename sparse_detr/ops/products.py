"""Products of queries and samples, from the kernels of deformable attention and of its gradient.

With s_i the bilinear sample at location i, w_i its weight, q the query, for one query and head:

    out = sum_i w_i s_i                             the forward kernel
    p_i = q . s_i = d (q . out) / d w_i             the gradient of the weights, for the gradient q of the output
    d p_i / d q = s_i                               so with g the gradient of p: grad q = sum_i g_i s_i, the forward
                                                    kernel with the weights g
    grad value, grad location                       the gradients of q . sum_i g_i s_i, the backward kernel
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_detr.ops import library


def sample_products(
    namespace: str,
    value: Tensor,
    points: Tensor,
    query: Tensor,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    """Return the products (B, Q, M, L, P) of every query (B, Q, M * D) with its samples."""
    arguments = (namespace, value, points, query, padding_mask, spatial_shapes)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (value, points, query)):
        return _SampleProducts.apply(*arguments)
    return _products(*arguments)


def _products(
    namespace: str,
    value: Tensor,
    points: Tensor,
    query: Tensor,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    # The weights do not matter for their own gradient; with zeros the gradient of the points, which is not used, is 0.
    weights = points.new_zeros(points.shape[:-1])
    _, _, products, _ = _backward(
        namespace, query, value, points, weights, padding_mask, spatial_shapes, need_value=False, need_samples=True
    )
    return products


def _backward(
    namespace: str,
    grad_output: Tensor,
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
    *,
    need_value: bool,
    need_samples: bool,
) -> tuple[Tensor, ...]:
    backward = library.op(namespace, "deformable_attention_backward")
    return backward(
        grad_output,
        value,
        points,
        weights,
        None,
        padding_mask,
        spatial_shapes,
        need_value,
        need_samples,
        False,
        torch.are_deterministic_algorithms_enabled(),
    )


class _SampleProducts(torch.autograd.Function):
    """`_products` with its gradient."""

    @staticmethod
    def forward(ctx: Any, namespace: str, *arguments: Any) -> Tensor:
        value, points, query, padding_mask, ctx.spatial_shapes = arguments
        ctx.namespace = namespace
        ctx.save_for_backward(value, points, query, padding_mask)
        return _products(namespace, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, points, query, padding_mask = ctx.saved_tensors
        need_value, need_points, need_query = ctx.needs_input_grad[1:4]
        grad_value = grad_points = grad_query = None
        if need_value or need_points:
            grad_value, grad_points, _, _ = _backward(
                ctx.namespace,
                query,
                value,
                points,
                grad,
                padding_mask,
                ctx.spatial_shapes,
                need_value=need_value,
                need_samples=need_points,
            )
        if need_query:
            attention = library.op(ctx.namespace, "deformable_attention")
            grad_query = attention(value, points, grad, None, padding_mask, ctx.spatial_shapes)
        return (
            None,
            grad_value if need_value else None,
            grad_points if need_points else None,
            grad_query,
            None,
            None,
        )
