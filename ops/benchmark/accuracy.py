"""A backend's results and gradients against the formula in float64, on a small input with padding and borders."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmark.cases import TINY_PYRAMID, Case, Inputs, eager_samples, make_inputs
from benchmark.peers.composite import fair
from benchmark.timing import exact, relative_error

# Largest deviation, relative to the largest number of a tensor. Half precision rounds once, at the end.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 1e-2, "float16": 2e-3}
CASES = {
    "points": Case("points", batch=2, share=0.04, shapes=TINY_PYRAMID),
    "boxes": Case("boxes", batch=2, boxes=3, shapes=TINY_PYRAMID),
}


def deviations(backend: str, device: str, dtype: str) -> dict[str, float]:
    """Return the largest deviation of each result, by name."""
    found = {}
    for name, case in CASES.items():
        inputs = make_inputs(case, seed=3, device=device, dtype=getattr(torch, dtype))
        for form in ("plain", "fused"):
            results = differentiate(form, inputs, backend)
            truth = differentiate(form, exact(inputs), None)
            for what, expected in truth.items():
                found[f"{form}, {name}, {what}"] = relative_error(results[what], expected)
        if dtype in ("float32", "float64"):
            expected = splat(exact(inputs), "reference")
            found[f"splat, {name}"] = relative_error(splat(inputs, backend), expected)
    return found


def differentiate(form: str, inputs: Inputs, backend: str | None) -> dict[str, Tensor]:
    """Return output and gradients; without a backend those of the composite PyTorch form."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in differentiable(form, inputs)}
    mask = padding(inputs)
    output = attend(form, inputs, leaves, mask, backend) if backend else attend_exactly(form, inputs, leaves, mask)
    gradients = torch.autograd.grad(output, list(leaves.values()), inputs.grad_output)
    return {"output": output} | {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}


def differentiable(form: str, inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    names = {"plain": ("locations", "weights"), "fused": ("reference_points", "offsets", "logits")}
    for name in ("value", *names[form]):
        yield name, getattr(inputs, name)


def padding(inputs: Inputs) -> Tensor:
    """Return a mask (B, N) of every fifth token."""
    batch, tokens = inputs.value.shape[:2]
    return (torch.arange(tokens, device=inputs.value.device) % 5 == 4).expand(batch, -1).contiguous()


def attend(form: str, inputs: Inputs, leaves: dict[str, Tensor], mask: Tensor, backend: str) -> Tensor:
    from sparse_detr import ops

    function = {"plain": ops.multi_scale_deformable_attention, "fused": ops.fused_deformable_attention}[form]
    value, *samples = leaves.values()
    return function(value, inputs.levels.shapes, *samples, padding_mask=mask, backend=backend)


def attend_exactly(form: str, inputs: Inputs, leaves: dict[str, Tensor], mask: Tensor) -> Tensor:
    value, *samples = leaves.values()
    value = value.masked_fill(mask[:, :, None, None], 0)
    samples = eager_samples(inputs.levels.shapes, *samples) if form == "fused" else samples
    return fair(value, inputs.levels, *samples)


def splat(inputs: Inputs, backend: str) -> Tensor:
    from sparse_detr.ops import splat_attention

    return splat_attention(inputs.levels.shapes, inputs.locations, inputs.weights, backend=backend)


def repeats_itself(backend: str, device: str) -> bool:
    """Return whether two backward passes under `torch.use_deterministic_algorithms` agree bit for bit."""
    inputs = make_inputs(CASES["points"], seed=4, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (differentiate("fused", inputs, backend) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    return all(torch.equal(first[name], second[name]) for name in first)
