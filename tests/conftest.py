"""The order of the tests, and the memory that they give back.

What takes longest starts first, so that `make test`'s two processes end together. At the start each takes every second
file of this list, so that the golden cases, the largest, never run beside `test_overfit` or tests that start processes.
"""

import ctypes
import gc
import sys
from pathlib import Path

import pytest

FIRST = ("test_overfit.py", "test_distributed.py", "test_golden.py", "test_denoising.py", "test_model_cost.py")


def pytest_collection_modifyitems(items):
    names = {name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: names.get(Path(item.path).name, len(names)))


def give_back_memory():
    """Return to the system what was freed; glibc keeps it otherwise."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


@pytest.fixture(autouse=True, scope="module")
def _give_back_memory_of_a_module():
    yield
    give_back_memory()
