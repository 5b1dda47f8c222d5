"""The choice of the backend: by the device of the tensors and what this machine has, unless the caller names one.

    reference  PyTorch, on every device
    gather     PyTorch without `grid_sample`, on every device, for exported files: `ops/gather.py`
    cpu        native library (`ops/csrc/cpu`)
    triton     Triton kernels for CUDA tensors, compiled at the first call, which needs a C compiler
    cuda       native library (`ops/csrc/cuda`)

The argument `backend` of the public functions comes first, then `use_backend`, then the environment variable
SPARSE_DETR_BACKEND, then AUTOMATIC. A named backend that is not available is an error; no other backend replaces it.

GPU kernels are compared with the reference at the first call on a device and dtype, see `self_check`. If they fail,
there is a warning: the automatic choice then skips them, but a named backend runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sparse_detr.ops import library, native, self_check

VARIABLE = "SPARSE_DETR_BACKEND"
NAMES = ("reference", "gather", "cpu", "triton", "cuda")
PLAIN = ("reference", "gather")  # PyTorch's own operators: available everywhere, with all derivatives
# By type of device; the first available backend is chosen, `reference` if there is none.
AUTOMATIC = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
OLDEST_TRITON_GPU = (7, 0)  # compute capability; the oldest for which torch.compile uses Triton
CHECKED = ("triton", "cuda")  # backends with a self-check
_used: ContextVar[str | None] = ContextVar("backend of use_backend", default=None)
NAMESPACES = {"cpu": "sparse_detr", "cuda": "sparse_detr", "triton": "sparse_detr_triton"}


@dataclass(frozen=True)
class Backend:
    """A backend on this machine.

    Args:
        name: one of NAMES.
        unavailable: why it cannot run here and what to do about it; None if it can.
        device_types: device types of the tensors that it takes; empty for all.
    """

    name: str
    unavailable: str | None
    device_types: tuple[str, ...]


def available_backends() -> dict[str, str | None]:
    """Return for every backend None, or the reason why it cannot run on this machine."""
    return {name: find_backend(name).unavailable for name in NAMES}


def choose_backend(value: Tensor, backend: str | None = None, *, differentiable: bool = False) -> str:
    """Return the name of the backend that runs on `value`.

    Args:
        value: a tensor of the call.
        backend: name given by the caller; None for SPARSE_DETR_BACKEND, or else the automatic choice.
        differentiable: whether the call needs a derivative that kernels do not have; the automatic choice is then
            `reference`.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: the named backend cannot run here, or not on the device of the tensor.
    """
    name = _choose(value.device.type, backend, differentiable)
    if torch.compiler.is_compiling() or name not in CHECKED:
        return name
    problem = self_check.why_not_trusted(name, NAMESPACES[name], value.device, value.dtype)
    if problem is None:
        return name
    if backend or _used.get() or os.environ.get(VARIABLE):
        consequence = "it runs all the same because it was named; name no backend to get one that works"
        self_check.warn_once(name, value.device, value.dtype, problem, consequence)
        return name
    instead = _choose(value.device.type, backend, differentiable)
    consequence = f"{instead!r} runs instead, maybe slower ({VARIABLE}={name} forces the kernels)"
    self_check.warn_once(name, value.device, value.dtype, problem, consequence)
    return choose_backend(value, backend, differentiable=differentiable)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Let all calls of this thread in the `with` block that name no backend use this one.

    Raises:
        ValueError: at a call, there is no backend of that name.
        RuntimeError: at a call, the backend cannot run.
    """
    token = _used.set(name)
    try:
        yield
    finally:
        _used.reset(token)


def check_backend(name: str) -> dict[torch.dtype, str | None]:
    """Run the self-check of a GPU backend on the current device; return for every dtype the problem or None."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {dtype: self_check.why_not_trusted(name, NAMESPACES[name], device, dtype) for dtype in dtypes}


def _choose(device_type: str, backend: str | None, differentiable: bool) -> str:
    source = "the argument backend"
    if backend is None:
        backend, source = _used.get(), "use_backend"
    if backend is None:
        backend, source = os.environ.get(VARIABLE) or None, f"the environment variable {VARIABLE}"
    if backend is None:
        return "reference" if differentiable else _choose_automatically(device_type)
    if backend not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {backend!r}")
    found = find_backend(backend)
    if found.unavailable:
        raise RuntimeError(f"{source} asks for {backend!r}, which is not available here: {found.unavailable}")
    if found.device_types and device_type not in found.device_types:
        raise RuntimeError(
            f"{source} asks for {backend!r}, which takes tensors on {' or '.join(found.device_types)}, but value is on "
            f"{device_type}; move it, or name no backend to get the best one for its device"
        )
    return backend


# torch.compile treats the result as a constant. `torch.compiler.assume_constant_result(_choose)` does the same, but
# also imports the compiler, which takes two seconds.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose_automatically(device_type: str) -> str:
    for name in AUTOMATIC.get(device_type, ()):
        if find_backend(name).unavailable is None and not self_check.has_failed(name, device_type):
            return name
    return "reference"


@cache
def find_backend(name: str) -> Backend:
    """Return the backend of that name, and load it if it can run."""
    if name in PLAIN:
        return Backend(name, None, ())
    if name == "triton":
        return _find_triton()
    missing = native.load(name).unavailable
    if name == "cuda" and missing is None and not torch.cuda.is_available():
        missing = "torch sees no CUDA GPU"
    return Backend(name, missing, (name,))


def _find_triton() -> Backend:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads this variable when the kernels are imported
    device_types = ("cpu", "cuda") if interpreted else ("cuda",)
    missing = _why_not_triton(interpreted)
    if missing is None:
        try:
            from sparse_detr.ops import triton_backend
        except ImportError as error:
            missing = f"the package triton cannot be imported ({error}); install it again"
        else:
            library.register_kernels("sparse_detr_triton", triton_backend, device_types)
    return Backend("triton", missing, device_types)


def _why_not_triton(interpreted: bool) -> str | None:
    """Return what Triton lacks on this machine, None if nothing; Triton itself finds most of it only at a launch."""
    if find_spec("triton") is None:
        return "the package triton is not installed; install it"
    if interpreted:
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU; TRITON_INTERPRET=1 runs the kernels on CPU tensors, for tests"
    oldest = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
    if oldest < OLDEST_TRITON_GPU:
        least, found = (".".join(map(str, capability)) for capability in (OLDEST_TRITON_GPU, oldest))
        return f"Triton needs compute capability {least}, but a GPU here has {found}; hide it with CUDA_VISIBLE_DEVICES"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, and there is neither gcc nor clang; install one, or set CC to yours"
    return None
