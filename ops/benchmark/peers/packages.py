"""Packages that implement deformable attention and can be installed beside ours."""

from __future__ import annotations

import importlib
import importlib.util

from torch import Tensor

from benchmark.cases import Levels, eager_locations
from benchmark.variants import Missing, Variant


def require_package(module: str, install: str) -> None:
    """Raise `Missing` with the command that installs it."""
    if importlib.util.find_spec(module) is None:
        raise Missing(f"not installed: {install}")


def torch_ms_deform_attn() -> Variant:
    require_package("torch_ms_deform_attn", "pip install torch-ms-deform-attn==0.1.1")
    function = importlib.import_module("torch_ms_deform_attn").ms_deform_attn

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return function(value, levels.shape_tensor, levels.starts, locations, weights)

    return Variant("torch-ms-deform-attn", "peer", run, one_dtype=True)


def hugging_face() -> Variant:
    require_package("transformers", "pip install transformers==5.23.0")
    module = importlib.import_module("transformers.models.deformable_detr.modeling_deformable_detr")
    attention = module.MultiScaleDeformableAttention()

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return attention(value, levels.shape_tensor, list(levels.shapes), levels.starts, locations, weights, 64)

    return Variant("HF transformers", "peer", run, one_dtype=True)


def deformops(backend: str, *, method: str = "linear") -> Variant:
    require_package("deformops", "pip install deformops==3.0.1 (Python 3.12 or 3.13)")
    registry = importlib.import_module("deformops.registry")
    chosen = registry.Backend(backend)

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        weights = weights.to(value.dtype)
        return registry.msda(
            value, levels.shape_tensor, levels.starts, locations, weights, method=method, backend=chosen
        )

    return Variant(f"deformops {backend}", "peer", run)


def deformops_softmax(backend: str) -> Variant:
    """Return its kernel that normalises the logits; locations are made in PyTorch."""
    plain = deformops(backend, method="softmax")

    def run(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return plain.run(value, levels, eager_locations(levels.shapes, reference_points, offsets), logits)

    return Variant(f"{plain.name}, its softmax", "peer", run)
