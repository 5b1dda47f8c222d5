"""FLOPs of attention, for fvcore and so for Detectron2's unmodified `analyze_model`.

fvcore has no handle for `scaled_dot_product_attention`, nor for the fused kernel that `nn.MultiheadAttention` takes in
eval mode, so a transformer's attention counts as zero. As in fvcore, one multiply-add is one flop; softmax and masks
are free.

Multi-scale deformable attention counts the same with every backend: as fvcore counts `grid_sample`, from which the
reference is made.
"""

from collections.abc import Callable
from importlib import import_module
from math import prod
from typing import Any

FlopHandle = Callable[[list[Any], list[Any]], int]


def register_flop_handles() -> None:
    """Add our handles to the defaults of every later `FlopCountAnalysis`; a handle that fvcore has stays.

    May be called any number of times.
    """
    # The attribute fvcore.nn.flop_count is a function that hides the module of the same name from an import statement.
    supported_ops = import_module("fvcore.nn.flop_count")._DEFAULT_SUPPORTED_OPS
    for name, handle in FLOP_HANDLES.items():
        supported_ops.setdefault(name, handle)


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count `scaled_dot_product_attention(query (..., Q, D), key (..., S, D), value (..., S, E)) -> (..., Q, E)`.

    Args:
        inputs: jit values of the operator's arguments.
        outputs: jit values of its results.
    """
    (*_, num_keys, key_dim), (*rows, value_dim) = _shape(inputs[1]), _shape(outputs[0])
    return prod(rows) * num_keys * (key_dim + value_dim)


def fused_multihead_attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count `_native_multi_head_attention(query (B, Q, C), key (B, S, C), value (B, S, C), ...)`.

    Projections of query, key and value, the attention of all heads together, and the output projection.

    Args:
        inputs: jit values of the operator's arguments.
        outputs: jit values of its results.
    """
    batch_size, num_queries, embed_dim = _shape(inputs[0])
    num_keys = _shape(inputs[1])[1]
    projections = 2 * (num_queries + num_keys) * embed_dim**2
    attention = 2 * num_queries * num_keys * embed_dim
    return batch_size * (projections + attention)


def deformable_attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count `deformable_attention(value (B, N, M, D), points (B, Q, M, L, P, 2), ...)`: four for a channel of a sample.

    Args:
        inputs: jit values of the operator's arguments.
        outputs: jit values of its results.
    """
    head_dim = _shape(inputs[0])[3]
    return 4 * prod(_shape(inputs[1])[:5]) * head_dim


def sample_products_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count `deformable_attention_backward(query (B, Q, M * D), value (B, N, M, D), points (B, Q, M, L, P, 2), ...)`.

    At inference it only makes the products of key-aware attention: the samples count as in `deformable_attention`.

    Args:
        inputs: jit values of the operator's arguments.
        outputs: jit values of its results.
    """
    return deformable_attention_flops(inputs[1:], outputs)


def _shape(value: Any) -> list[int]:
    """Return the shape of a traced tensor (`torch._C.Value`)."""
    return value.type().sizes()


FLOP_HANDLES: dict[str, FlopHandle] = {
    "aten::scaled_dot_product_attention": attention_flops,
    "aten::_native_multi_head_attention": fused_multihead_attention_flops,
    "sparse_detr::deformable_attention": deformable_attention_flops,
    "sparse_detr_triton::deformable_attention": deformable_attention_flops,
    "sparse_detr::deformable_attention_backward": sample_products_flops,
    "sparse_detr_triton::deformable_attention_backward": sample_products_flops,
}
