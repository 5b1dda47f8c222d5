"""Runs a test once for every backend that takes CPU tensors in this process."""

import pytest

from tests.ops.backends import BACKENDS, KERNELS


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of a backend."""
    return request.param


@pytest.fixture(params=KERNELS or [None])
def kernel(request):
    """The name of a backend that is an op of torch.library."""
    if request.param is None:
        pytest.skip("no kernel is built here: python ops/build.py")
    return request.param
