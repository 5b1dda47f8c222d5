"""Fixtures that run a test for every backend; GPU backends are skipped without a GPU."""

import pytest
import torch

from sparse_detr.ops.backends import PLAIN
from tests.ops.backends import BACKENDS, CPU_BACKENDS, KERNELS, skip_if_absent


def on_its_device(name, device):
    """Yield the name of a backend; tensors are made on its device."""
    if device == "cpu":
        yield name
        return
    skip_if_absent(name, device)
    torch.set_default_device(device)
    yield name
    torch.set_default_device(None)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Give the name of a backend; tensors are made on its device."""
    yield from on_its_device(*request.param)


@pytest.fixture(params=KERNELS)
def kernel(request):
    """Give the name of a backend that is an op of torch.library; tensors are made on its device."""
    yield from on_its_device(*request.param)


@pytest.fixture(params=CPU_BACKENDS)
def cpu_backend(request):
    """Give the name of a backend that takes CPU tensors."""
    return request.param


@pytest.fixture(params=[name for name in CPU_BACKENDS if name not in PLAIN] or [None])
def cpu_kernel(request):
    """Give the name of a backend that is an op of torch.library and takes CPU tensors."""
    if request.param is None:
        pytest.skip("no kernel is built here: python ops/build.py")
    return request.param
