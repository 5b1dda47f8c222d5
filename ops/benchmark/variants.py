"""The common form of the implementations that are measured, and our own.

A variant of the plain form takes (value, levels, locations, weights), of the fused form (value, levels, reference
points, offsets, logits), of the attention map (levels, locations, weights).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmark.cases import Inputs, Levels, eager_samples

FORMS = {"plain": "plain form", "fused": "fused form", "splat": "attention map"}


@dataclass(frozen=True)
class Variant:
    """An implementation under a name.

    Args:
        name: in tables and plots.
        kind: "ours", "pytorch", "peer", or "floor", which is no implementation but a bound of ours.
        run: the call.
        one_dtype: it takes locations and weights in the value's dtype only.
        one_spot: every query looks at the same cells of small maps (`Inputs.in_one_spot`).
    """

    name: str
    kind: str
    run: Callable[..., Tensor]
    one_dtype: bool = False
    one_spot: bool = False

    def prepare(self, inputs: Inputs) -> Inputs:
        """Return the inputs as this implementation takes them."""
        inputs = inputs.cast_samples(inputs.value.dtype) if self.one_dtype else inputs
        return inputs.in_one_spot() if self.one_spot else inputs


class Missing(Exception):
    """The reason why a variant cannot be measured here."""


def after_eager(plain: Variant) -> Variant:
    """Return the plain form after softmax and locations in PyTorch: what a layer does without the fused form."""

    def run(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return plain.run(value, levels, *eager_samples(levels.shapes, reference_points, offsets, logits))

    return Variant(f"eager + {plain.name}", plain.kind, run, one_dtype=plain.one_dtype)


def require_backend(name: str) -> None:
    """Raise `Missing` with the library's own reason."""
    from sparse_detr.ops import available_backends

    reason = available_backends()[name]
    if reason is not None:
        raise Missing(reason)


def ours(backend: str) -> Variant:
    from sparse_detr.ops import multi_scale_deformable_attention

    require_backend(backend)

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value, levels.shapes, locations, weights, backend=backend)

    return Variant(backend, "ours", run)


def ours_fused(backend: str) -> Variant:
    from sparse_detr.ops import fused_deformable_attention

    require_backend(backend)

    def run(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return fused_deformable_attention(value, levels.shapes, reference_points, offsets, logits, backend=backend)

    return Variant(f"{backend} fused", "ours", run)


def ours_splat(backend: str) -> Variant:
    from sparse_detr.ops import splat_attention

    require_backend(backend)

    def run(levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return splat_attention(levels.shapes, locations, weights, backend=backend)

    return Variant(splat_name(backend), "pytorch" if backend == "reference" else "ours", run)


def splat_name(backend: str) -> str:
    return "scatter_add" if backend == "reference" else backend
