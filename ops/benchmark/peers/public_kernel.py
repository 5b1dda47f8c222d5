"""The stand-in for the public CUDA kernels: built with nvcc into a plain C library, called through ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from benchmark.cases import Levels
from benchmark.variants import Missing, Variant

SOURCE = Path(__file__).resolve().with_suffix(".cu")
SIZE_NAMES = ("batch", "tokens", "heads", "channels", "levels", "queries", "points")
BUILD = SOURCE.parents[3] / "build" / "benchmark"


class CannotBuild(Exception):
    """The reason why there is no library."""


class Sizes(ctypes.Structure):
    """The sizes of a call, as in the source."""

    _fields_ = [(name, ctypes.c_int) for name in SIZE_NAMES]


def nvcc() -> str:
    """Return the path of the compiler: in CUDA_HOME, else in PATH."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=os.path.join(home, "bin")) if home else shutil.which("nvcc")
    if found is None:
        raise CannotBuild("needs nvcc: set CUDA_HOME to a CUDA toolkit")
    return found


def compile_library(folder: Path = BUILD) -> Path:
    """Compile for the GPU that is here, or for any where there is none. Takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "libpublic_kernel.so"
    architecture = ["-arch=native"] if torch.cuda.is_available() else []
    command = [nvcc(), "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", *architecture]
    result = subprocess.run([*command, "-o", str(path), str(SOURCE)], capture_output=True, text=True)
    if result.returncode:
        raise CannotBuild(f"nvcc failed: {result.stderr.strip()}")
    return path


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library, compiled on first use."""
    return ctypes.CDLL(str(compile_library()))


class PublicKernel(torch.autograd.Function):
    """The operator, (B, Q, M * D). It computes in float32, as the public layer does under autocast."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        real = [tensor.float().contiguous() for tensor in (value, locations, weights)]
        ctx.save_for_backward(shapes, starts, *real)
        ctx.dtypes = value.dtype, locations.dtype, weights.dtype
        output = real[0].new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        launch("public_forward", [real[0], shapes, starts, *real[1:]], sizes_of(*real[:2]), [output])
        return output.to(value.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        shapes, starts, *real = ctx.saved_tensors
        gradients = [torch.zeros_like(real[0]), torch.empty_like(real[1]), torch.empty_like(real[2])]
        inputs = [grad_output.float().contiguous(), real[0], shapes, starts, *real[1:]]
        launch("public_backward", inputs, sizes_of(*real[:2]), gradients)
        value, locations, weights = (gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True))
        return value, None, None, locations, weights


def sizes_of(value: Tensor, locations: Tensor) -> Sizes:
    batch, tokens, heads, channels = value.shape
    return Sizes(batch, tokens, heads, channels, locations.shape[3], locations.shape[1], locations.shape[4])


def launch(name: str, inputs: list[Tensor], sizes: Sizes, results: list[Tensor]) -> None:
    """Launch a kernel on the current stream."""
    stream = torch.cuda.current_stream(results[0].device).cuda_stream
    before, after = map(pointers, (inputs, results))
    error = getattr(library(), name)(*before, sizes, *after, ctypes.c_void_p(stream))
    if error:
        raise RuntimeError(f"{name}: CUDA error {error}")


def pointers(tensors: list[Tensor]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def variant() -> Variant:
    """Return the stand-in as what the benchmark measures."""
    try:
        library()
    except CannotBuild as reason:
        raise Missing(str(reason)) from reason

    def run(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
        return PublicKernel.apply(value, levels.shape_tensor, levels.starts, locations, weights)

    return Variant("public kernel (stand-in)", "peer", run)
