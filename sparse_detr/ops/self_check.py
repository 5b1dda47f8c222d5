"""The self-check: a small call of a backend against the reference, before it is trusted on a device and dtype.

Which GPU a kernel meets is not known when it is written, so the automatic choice of a GPU's backend is checked once a
process, device and dtype: output and gradients of both forms, and the attention map, of a few random numbers. A kernel
that gives other numbers, or fails, is passed over with one warning. A backend that the caller names runs all the same:
the warning then says that its numbers are wrong.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.ops import library, reference

SHAPES = [3, 4, 2, 2]
# Largest deviation from the reference, relative to the largest number. A wrong kernel is off by about 1; atomic
# additions, and one rounding to half precision, by less than this.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
Key = tuple[str, torch.device, torch.dtype]  # backend, device, dtype
_results: dict[Key, str | None] = {}
_warned: set[Key] = set()


@dataclass(frozen=True)
class OperatorArguments:
    """Arguments of the operators, in the order of their schema, on the host in float64."""

    value: Tensor
    points: Tensor
    weights: Tensor
    reference_points: Tensor | None
    padding_mask: Tensor


def why_not_trusted(backend: str, namespace: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a backend on a device and dtype, checked at the first call; None if nothing is.

    Nothing is found out, and None given, while the call is traced or captured into a CUDA graph: the answer would
    become part of what is recorded.
    """
    key = (backend, device, dtype)
    if key not in _results:
        if _is_recorded(device):
            return None
        _results[key] = _run(namespace, device, dtype)
    return _results[key]


def has_failed(backend: str, device_type: str) -> bool:
    """Return whether a backend failed its check in any dtype on any device of a type."""
    return any(
        problem and name == backend and device.type == device_type for (name, device, _), problem in _results.items()
    )


def warn_once(backend: str, device: torch.device, dtype: torch.dtype, problem: str, consequence: str) -> None:
    """Warn in one line, once for each device and dtype in a process."""
    if (backend, device, dtype) in _warned:
        return
    _warned.add((backend, device, dtype))
    warnings.warn(
        f"the {backend} kernels failed their self-check on {device} in {str(dtype).removeprefix('torch.')}: {problem}; "
        f"{consequence}; please report it with the output of `sparse-detr collect-env`",
        RuntimeWarning,
        stacklevel=2,
    )


def _is_recorded(device: torch.device) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch.utils._python_dispatch._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack():
        return True
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _run(namespace: str, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            return _compare(namespace, device, dtype)
    except Exception as error:  # whatever a kernel, its compiler or its launch raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _compare(namespace: str, device: torch.device, dtype: torch.dtype) -> str | None:
    generator = torch.Generator("cpu").manual_seed(0)
    for numbers in (0, 2, 4):
        case = _case(generator, numbers)
        found = _outputs_and_gradients(namespace, case, device, dtype)
        expected = _outputs_and_gradients(None, case, device, dtype)
        for name, ours in found.items():
            largest = expected[name].abs().max().clamp(min=1e-6)
            deviation = float((ours.double() - expected[name]).abs().max() / largest)
            if not deviation <= TOLERANCES[dtype]:
                return f"{name} is off by {deviation:.1e} of its largest number"
    return None


def _case(generator: torch.Generator, numbers: int) -> OperatorArguments:
    """Make 2 images, 3 queries, 2 heads of 8 channels and 2 points; references of `numbers` numbers, if any."""

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, dtype=torch.float64, device="cpu")

    tokens = sum(height * width for height, width in zip(SHAPES[::2], SHAPES[1::2], strict=True))
    points = uniform(2, 3, 2, 2, 2, 2)
    return OperatorArguments(
        value=uniform(2, tokens, 2, 8) - 0.5,
        points=points * 1.2 - 0.1 if numbers == 0 else points * 4 - 2,
        weights=uniform(2, 3, 2, 2, 2),
        reference_points=uniform(2, 3, 2, numbers) if numbers else None,
        padding_mask=uniform(2, tokens) < 0.2,
    )


def _outputs_and_gradients(
    namespace: str | None, case: OperatorArguments, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Run a namespace's operators, or the reference in float64, on numbers rounded to the kernel's types."""
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def leaf(x: Tensor, rounded: torch.dtype) -> Tensor:
        x = x.to(rounded)
        return (x.double() if namespace is None else x.to(device)).requires_grad_()

    value, points, weights = leaf(case.value, dtype), leaf(case.points, real), leaf(case.weights, real)
    references = None if case.reference_points is None else leaf(case.reference_points, real)
    mask = case.padding_mask if namespace is None else case.padding_mask.to(device)
    attend = reference.deformable_attention if namespace is None else library.op(namespace, "deformable_attention")
    output = attend(value, points, weights, references, mask, SHAPES)
    leaves = {"value": value, "points": points, "weights": weights, "reference_points": references}
    there = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(output.double().square().sum(), list(there.values()))
    results = {"the output": output.detach()}
    results |= {f"the gradient of {name}": x for name, x in zip(there, gradients, strict=True)}
    if references is None:
        splat = reference.splat_attention if namespace is None else library.op(namespace, "splat_attention")
        results["the attention map"] = splat(points.detach(), weights.detach(), SHAPES, -0.5)
    return {name: x.cpu() if namespace is None else x.detach().cpu() for name, x in results.items()}
