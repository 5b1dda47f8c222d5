"""Finding and loading the native libraries, which `ops/build.py` puts in the folder `_native`.

Nothing is compiled here. A library that is missing or does not load is said to be so, with the reason; that is no error
until a caller asks for it by name.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

NAMES = ("cpu", "cuda")
STABLE_ABI = (2, 10)  # the oldest PyTorch that the libraries load under
REBUILD = "build it with `python ops/build.py`, or install sparse_detr again"


@dataclass(frozen=True)
class Library:
    """A native library, loaded unless `unavailable` says why not."""

    name: str
    path: Path | None
    unavailable: str | None


def folder() -> Path:
    """Return the folder of the libraries; the environment variable SPARSE_DETR_NATIVE_DIR names another one."""
    return Path(os.environ.get("SPARSE_DETR_NATIVE_DIR") or Path(__file__).parent / "_native")


def build_record() -> dict[str, Any]:
    """Return what `ops/build.py` wrote about its last build; {} if it never ran, or if the file is damaged."""
    try:
        return json.loads((folder() / "build.json").read_text())
    except (OSError, ValueError):
        return {}


def status() -> dict[str, Library]:
    """Return every library by name, loaded if that is possible."""
    return {name: load(name) for name in NAMES}


@cache
def load(name: str) -> Library:
    """Load the library `cpu` or `cuda`, once in a process."""
    path = folder() / f"libsparse_detr_{name}.so"
    if not path.is_file():
        return Library(name, None, f"{_why_not_built(name)}; {REBUILD}")
    if reason := unsuited_torch(name):
        return Library(name, path, reason)
    if _is_cut_short(path):
        return Library(name, path, f"{path.name} is cut short, {path.stat().st_size} bytes are left; {REBUILD}")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # of another platform, or with symbols that this PyTorch lacks
        return Library(name, path, f"{path.name} does not load ({error}); {REBUILD}")
    return Library(name, path, None)


def cpu_isa() -> str | None:
    """Return the instruction set of the CPU library: avx512, avx2 or baseline; None without the library.

    The environment variable SPARSE_DETR_CPU_ISA limits it; None too if it holds another word, which calls then refuse.
    """
    library = load("cpu")
    if library.unavailable:
        return None
    read = ctypes.CDLL(str(library.path)).sparse_detr_cpu_isa
    read.restype = ctypes.c_char_p
    name = read()
    return name.decode() if name else None


def _is_cut_short(path: Path) -> bool:
    """Return whether an ELF file ends before its table of sections does; loading it would kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":  # no 64 bit ELF: the loader says what it is
        return False
    (table,) = struct.unpack_from("=Q", header, 0x28)
    entry_size, entries = struct.unpack_from("=HH", header, 0x3A)
    return path.stat().st_size < table + entry_size * entries


def _why_not_built(name: str) -> str:
    libraries = build_record().get("libraries", {})
    return libraries.get(name, {}).get("reason") or "it is not built"


def unsuited_torch(name: str) -> str | None:
    """Return why a library cannot run with this PyTorch, however it is built; None if it can."""
    version = torch.__version__
    if tuple(map(int, version.split(".")[:2])) < STABLE_ABI:
        oldest = ".".join(map(str, STABLE_ABI))
        return f"torch {version} is older than {oldest}, whose stable ABI the library needs; install a newer torch"
    if name == "cuda" and torch.version.cuda is None:
        return f"torch {version} is built without CUDA; install one that is built with it"
    return None
