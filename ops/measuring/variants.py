"""Implementations that are measured: ours, PyTorch's composite forms, and the installable peers.

A variant of the plain form takes (value, levels, locations, weights), of the fused form (value, levels, reference
points, offsets, logits), of the splat (levels, locations, weights).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring.cases import Inputs, Levels, eager_locations, eager_samples

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
        """The inputs as this implementation takes them."""
        inputs = inputs.cast_samples(inputs.value.dtype) if self.one_dtype else inputs
        return inputs.in_one_spot() if self.one_spot else inputs


class Missing(Exception):
    """Why a variant cannot be measured here."""


def variants_of(form: str, device: str) -> tuple[list[Variant], dict[str, str]]:
    """What can be measured, and the reason for what cannot."""
    found, missing = [], {}
    for name, make in makers(form, device):
        try:
            found.append(make())
        except Missing as reason:
            missing[name] = str(reason)
    return found, missing


def makers(form: str, device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    """(name, function that makes it or raises `Missing`), the yardstick of the form first."""
    if form == "plain":
        yield from plain_makers(device)
    elif form == "fused":
        yield from fused_makers(device)
    else:
        yield from splat_makers(device)


def plain_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    yield "fair", lambda: Variant("fair", "pytorch", fair)
    yield "official", lambda: Variant("official", "pytorch", official)
    for backend in backends_on(device):
        yield backend, lambda backend=backend: ours(backend)
    if device == "cpu":
        yield "cpu, loads in L1", lambda: Variant("cpu, loads in L1", "floor", ours("cpu").run, one_spot=True)
    yield "torch-ms-deform-attn", torch_ms_deform_attn
    yield "HF transformers", hugging_face
    if device == "cuda":
        yield "deformops triton", lambda: deformops("triton")
        yield "deformops cuda", lambda: deformops("cuda")
        yield "public kernel (stand-in)", public_kernel


def fused_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    yield "eager + fair", lambda: after_eager(Variant("fair", "pytorch", fair))
    for backend in backends_on(device):
        if backend != "reference":  # which is `fair`
            yield f"eager + {backend}", lambda backend=backend: after_eager(ours(backend))
        yield f"{backend} fused", lambda backend=backend: ours_fused(backend)
    yield "eager + torch-ms-deform-attn", lambda: after_eager(torch_ms_deform_attn())
    if device == "cuda":
        yield "deformops triton, its softmax", lambda: deformops_softmax("triton")


def splat_makers(device: str) -> Iterable[tuple[str, Callable[[], Variant]]]:
    for backend in backends_on(device):
        yield splat_name(backend), lambda backend=backend: ours_splat(backend)


def backends_on(device: str) -> list[str]:
    """Names of our backends for tensors on that device."""
    return ["reference", "cpu"] if device == "cpu" else ["reference", "triton", "cuda"]


# PyTorch


def official(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """The public pure-PyTorch form: one `grid_sample` a level on a strided grid, then a stack."""
    return composite(value, levels, locations, weights, contiguous_grid=False)


def fair(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """The same on a contiguous grid: bit-identical at one image and up to twice as fast. The yardstick."""
    return composite(value, levels, locations, weights, contiguous_grid=True)


def composite(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor, *, contiguous_grid: bool) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, section 4.1), level by level."""
    dtype, value = value.dtype, value.to(locations.dtype)
    batch, _, num_heads, head_dim = value.shape
    num_queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    maps = value.split([height * width for height, width in levels.shapes], dim=1)
    for level, (height, width) in enumerate(levels.shapes):
        image = maps[level].permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2)
        grid = grid.contiguous() if contiguous_grid else grid
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, -2).flatten(-2)  # (B * M, D, Q, L * P)
    shares = weights.transpose(1, 2).reshape(batch * num_heads, 1, num_queries, -1)
    output = (stacked * shares).sum(-1).view(batch, num_heads * head_dim, num_queries)
    return output.transpose(1, 2).contiguous().to(dtype)


def after_eager(plain: Variant) -> Variant:
    """The plain form after softmax and locations in PyTorch: what a layer does without the fused form."""

    def run(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return plain.run(value, levels, *eager_samples(levels.shapes, reference_points, offsets, logits))

    return Variant(f"eager + {plain.name}", plain.kind, run, one_dtype=plain.one_dtype)


# Ours


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


# Peers


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
    """Its kernel normalises the logits; locations are made in PyTorch."""
    plain = deformops(backend, method="softmax")

    def run(value: Tensor, levels: Levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return plain.run(value, levels, eager_locations(levels.shapes, reference_points, offsets), logits)

    return Variant(f"{plain.name}, its softmax", "peer", run)


def public_kernel() -> Variant:
    from measuring import public_kernel as stand_in

    try:
        stand_in.library()
    except stand_in.CannotBuild as reason:
        raise Missing(str(reason)) from reason

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return stand_in.PublicKernel.apply(value, levels.shape_tensor, levels.starts, locations, weights)

    return Variant("public kernel (stand-in)", "peer", run)
