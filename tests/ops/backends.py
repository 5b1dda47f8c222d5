"""The backends that this process can test, and the devices of their tensors."""

import os

import pytest
import torch
import torch.nn.functional as F

from sparse_detr.ops import native
from sparse_detr.ops.backends import PLAIN, find_backend


def is_usable(library):
    """Return whether a native library is built for this PyTorch; if it then does not load, the tests fail."""
    return native.load(library).path is not None and native.unsuited_torch(library) is None


# Backends that take CPU tensors. `gather` is for exported files: tests/export hold it to the others' outputs.
# The Triton interpreter is slow, so only test_triton.py runs the kernels in it.
CPU_BACKENDS = ["reference"]
CPU_BACKENDS += ["cpu"] if is_usable("cpu") else []
CPU_BACKENDS += ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# (name, device) of every backend, and of those that are ops of torch.library. Only ids of the CPU library contain the
# word cpu, because `ops/sanitize.py` selects its tests by it.
KERNELS = [pytest.param((name, "cpu"), id=name) for name in CPU_BACKENDS if name not in PLAIN]
KERNELS += [pytest.param((name, "cuda"), id=f"{name}-gpu", marks=NEEDS_GPU) for name in ("triton", "cuda")]
BACKENDS = [pytest.param(("reference", "cpu"), id="reference"), *KERNELS]


def skip_if_absent(name, device):
    """Skip the test if the backend is not installed or built; a backend that is there but does not work fails it."""
    if device == "cuda" and not (name == "cuda" and is_usable("cuda")):
        reason = find_backend(name).unavailable
        if reason is not None:
            pytest.skip(f"{name}: {reason}")


def has_second_derivatives():
    """Return whether this PyTorch can differentiate `grid_sample` twice, and so the reference."""
    grid = torch.zeros(1, 1, 1, 2, requires_grad=True)
    output = F.grid_sample(torch.ones(1, 1, 2, 2), grid, align_corners=False)
    (gradient,) = torch.autograd.grad(output.sum(), grid, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), grid, allow_unused=True)
    except RuntimeError:
        return False
    return True
