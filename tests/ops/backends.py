"""The backends that take CPU tensors in this process."""

import os

from sparse_detr.ops import native

BACKENDS = ["reference"]
# Built but not loadable is a failure of the tests, not a reason to leave it out.
if native.status()["cpu"].path is not None:
    BACKENDS.append("cpu")
# Slow; test_triton.py, which sets it by itself, tests the kernels.
if os.environ.get("TRITON_INTERPRET") == "1":
    BACKENDS.append("triton")
KERNELS = [name for name in BACKENDS if name != "reference"]
