"""The backends that take CPU tensors in this process."""

import os

import torch
import torch.nn.functional as F

from sparse_detr.ops import native

BACKENDS = ["reference"]
# Built for this PyTorch but not loadable is a failure of the tests, not a reason to leave it out.
if native.status()["cpu"].path is not None and native.unsuited_torch("cpu") is None:
    BACKENDS.append("cpu")
# Slow; test_triton.py, which sets it by itself, tests the kernels.
if os.environ.get("TRITON_INTERPRET") == "1":
    BACKENDS.append("triton")
KERNELS = [name for name in BACKENDS if name != "reference"]


def has_second_derivatives():
    """Whether this PyTorch can differentiate `grid_sample` twice, and so the reference."""
    grid = torch.zeros(1, 1, 1, 2, requires_grad=True)
    output = F.grid_sample(torch.ones(1, 1, 2, 2), grid, align_corners=False)
    (gradient,) = torch.autograd.grad(output.sum(), grid, create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), grid, allow_unused=True)
    except RuntimeError:
        return False
    return True
