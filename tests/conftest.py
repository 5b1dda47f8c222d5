"""The order of the tests, and the memory that they give back.

What takes longest starts first, so that `make test`'s two processes end together. At the start the first process takes
the first and the third file of the list, the second one the others: so the golden cases, the largest, run beside no
other large test, nor beside those that start processes.
"""

import ctypes
import gc
import sys
from pathlib import Path

import pytest

FIRST = ("test_overfit.py", "engine/test_distributed.py", "test_golden.py", "analysis/test_model_cost.py")
LAST = ("modeling/test_denoising.py",)


def rank(path):
    """Place of a test file in the order."""
    name = Path(path).relative_to(Path(__file__).parent).as_posix()
    return FIRST.index(name) if name in FIRST else len(FIRST) + (name in LAST)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: rank(item.path))


def give_back_memory():
    """Return to the system what was freed; glibc keeps it otherwise."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


@pytest.fixture(autouse=True, scope="module")
def _give_back_memory_of_a_module():
    yield
    give_back_memory()
