"""Make a folder for the kernels hub of Hugging Face from the sources of `sparse_detr.ops`, and check it.

    python ops/hub/make.py /tmp/sparse-detr-attention --repo-id NAME/sparse-detr-attention

The folder holds `build.toml` and `torch-ext/` for kernel-builder, and `build/torch-cuda` and `build/torch-cpu`, which
need no building: Triton kernels and PyTorch code. It has no native library. The check loads it with the package
`kernels`, if that is installed, and compares an output with the reference.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "sparse_detr" / "ops"
NAME = "sparse_detr_attention"
# What the kernels need of sparse_detr.ops.
MODULES = (
    "argument_checks",
    "backends",
    "functions",
    "library",
    "native",
    "products",
    "reference",
    "self_check",
    "triton_backend",
)
BACKENDS = ("cuda", "cpu")
VERSION = 1


def main() -> None:
    """Make and check the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--repo-id", default="NAME/sparse-detr-attention", help="where it will be uploaded")
    args = parser.parse_args()
    make(args.folder, args.repo_id)
    print(f"made {args.folder}")
    print(check(args.folder))


def make(folder: Path, repo_id: str) -> None:
    """Write the folder.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    write(folder / "torch-ext" / NAME, kernel_files(f"_{NAME}_{digest(sources())}"))
    for backend in BACKENDS:
        record = metadata(backend)
        variant = folder / "build" / f"torch-{backend}"
        write(variant, {**kernel_files(record["id"]), "metadata.json": json.dumps(record, indent=2) + "\n"})
    for name in ("build.toml", "README.md"):
        (folder / name).write_text((HERE / name).read_text().replace("{repo_id}", repo_id))
    shutil.copy(ROOT / "LICENSE", folder)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def sources() -> dict[str, str]:
    """Return the Python files as they are in the tree, by name."""
    own = {path.name: path.read_text() for path in sorted((HERE / "torch_ext").glob("*.py"))}
    return {**{f"{name}.py": (SOURCES / f"{name}.py").read_text() for name in MODULES}, **own}


def kernel_files(namespace: str) -> dict[str, str]:
    """Return the Python files of a kernel by name: imports are relative, and the ops are in the namespace.

    So a kernel runs from any path, beside an installed sparse_detr and beside another version of itself.
    """
    files = {name: with_own_namespace(with_relative_imports(text), namespace) for name, text in sources().items()}
    left = [name for name, text in files.items() if re.search(r"^\s*(from|import) sparse_detr", text, re.MULTILINE)]
    if left:
        raise RuntimeError(f"{', '.join(left)} imports sparse_detr in a form that this script does not know")
    return files


def with_relative_imports(source: str) -> str:
    source = re.sub(r"^(\s*)from sparse_detr\.ops import ", r"\1from . import ", source, flags=re.MULTILINE)
    return re.sub(r"^(\s*)from sparse_detr\.ops\.(\w+) import ", r"\1from .\2 import ", source, flags=re.MULTILINE)


def with_own_namespace(source: str, namespace: str) -> str:
    return source.replace('"sparse_detr_triton"', f'"{namespace}_triton"').replace('"sparse_detr"', f'"{namespace}"')


def metadata(backend: str) -> dict[str, Any]:
    """Return what the hub keeps about a variant. Its id names the ops' namespace too, so it changes with them."""
    return {
        "name": NAME.replace("_", "-"),
        "id": f"_{NAME}_{backend}_{digest(sources())}",
        "version": VERSION,
        "license": "MIT",
        "python-depends": [],
        "backend": {"type": backend},
    }


def digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:8]


def check(folder: Path) -> str:
    """Load the folder and compare an output on the CPU with the reference; return what was done.

    Raises:
        RuntimeError: the outputs differ.
    """
    import torch

    kernel, loader = load(folder)
    sys.path.insert(0, str(ROOT))
    from sparse_detr.ops import multi_scale_deformable_attention

    torch.manual_seed(0)
    shapes = [(5, 7), (3, 4)]
    value, locations, weights = torch.rand(2, 47, 2, 8), torch.rand(2, 6, 2, 2, 3, 2), torch.rand(2, 6, 2, 2, 3)
    expected = multi_scale_deformable_attention(value, shapes, locations, weights, backend="reference")
    layer = kernel.layers.MultiScaleDeformableAttention()
    results = {
        "the function": kernel.multi_scale_deformable_attention(value, shapes, locations, weights),
        "the layer": layer(value, torch.tensor(shapes), shapes, None, locations, weights, 64),
    }
    for name, result in results.items():
        if not torch.allclose(result, expected, rtol=1e-5, atol=1e-6):
            raise RuntimeError(f"{name} of {folder} differs from the reference by {(result - expected).abs().max()}")
    return f"loaded with {loader}; on the CPU its function and its layer equal the reference"


def load(folder: Path) -> tuple[ModuleType, str]:
    """Return the kernel's module and what loaded it: the package kernels, or without it what that does."""
    if importlib.util.find_spec("kernels") is not None:
        from kernels import __version__, get_local_kernel

        return get_local_kernel(folder, backend="cpu"), f"kernels {__version__}"
    variant = folder / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{variant} holds no module")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, "importlib, since the package kernels is not installed"


if __name__ == "__main__":
    main()
