"""Print the versions and the hardware that a bug report needs."""

import argparse
import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from sparse_detr import __version__

MISSING = "not installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print one line a fact; return 0."""
    facts = collect_env()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def collect_env() -> dict[str, str]:
    """Return what is installed here and what it runs on: name -> value in words."""
    return {
        "sparse_detr": f"{__version__} ({_location('sparse_detr')})",
        "Python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "detectron2": _describe_detectron2(),
        "numpy": _version("numpy"),
        "triton": _version("triton"),
        **_devices(),
        **_backends(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return MISSING


def _location(module: str) -> str:
    spec = find_spec(module)
    return ", ".join(spec.submodule_search_locations or []) if spec else MISSING


def _describe_detectron2() -> str:
    """Return Detectron2's version, distribution and folder, and whether its `_C` can be loaded (it is not needed)."""
    if find_spec("detectron2") is None:
        return f"{MISSING} (python scripts/install_detectron2.py)"
    import detectron2

    packages = {name: _version(name) for name in ("detectron2", "sal-detectron2")}
    source = ", ".join(f"{name} {found}" for name, found in packages.items() if found != MISSING) or "no distribution"
    return f"{detectron2.__version__} from {source}, {_describe_extension()} ({_location('detectron2')})"


def _describe_extension() -> str:
    try:
        import_module("detectron2._C")
    except ImportError as error:
        return f"without _C, which is not needed ({error})"
    return "with _C"


def _devices() -> dict[str, str]:
    """Return the CPU and the GPUs that torch can use."""
    if find_spec("torch") is None:
        return {"CPU": f"{os.cpu_count()} cores"}
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "CPU": f"{os.cpu_count()} cores, {capability}, torch uses {torch.get_num_threads()} threads",
        "CUDA": f"{torch.version.cuda or 'not built into torch'}, {', '.join(gpus) or 'no GPU visible'}",
    }


def _backends() -> dict[str, str]:
    """Return for every backend of the attention operation how it was built, or why it cannot run here."""
    if find_spec("torch") is None:
        return {}
    from sparse_detr.ops import available_backends, native
    from sparse_detr.ops.backends import CHECKED

    record = native.build_record()
    described = {
        "reference": "PyTorch",
        "gather": "PyTorch without grid_sample",
        "triton": f"Triton {_version('triton')}, compiled when first used",
    }
    for name, library in record.get("libraries", {}).items():
        if library["built"]:
            described[name] = (
                f"built for {', '.join(library['variants'])} by {library['compiler']} with torch {record['torch']}, "
                f"for stable ABI {record['stable_abi']}"
            )
    if isa := native.cpu_isa():
        described["cpu"] = f"{isa} kernels run here; {described.get('cpu', 'build unknown')}"
    available = available_backends()
    for name in CHECKED:
        if available[name] is None:
            described[name] = f"{described.get(name, 'available')}; {_describe_self_check(name)}"
    return {
        f"ops: {name}": f"not available: {missing}" if missing else described.get(name, "available")
        for name, missing in available.items()
    }


def _describe_self_check(backend: str) -> str:
    from sparse_detr.ops.backends import check_backend

    found = {str(dtype).removeprefix("torch."): problem for dtype, problem in check_backend(backend).items()}
    failed = [f"{dtype}: {problem}" for dtype, problem in found.items() if problem]
    return f"self-check FAILED, {', '.join(failed)}" if failed else f"self-check passed in {', '.join(found)}"
