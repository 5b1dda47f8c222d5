"""The folder for the kernels hub, made from the sources."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_detr.ops import patching

HUB = Path(__file__).parents[2] / "ops" / "hub"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("hub_make", HUB / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "kernel"
    make.make(folder, "someone/a-kernel")
    return folder


def test_the_folder_runs_without_the_package_from_any_path(folder):
    """In a process where `sparse_detr` cannot be imported; then in one that has it, through the script's own check."""
    code = (
        "import sys; sys.modules['sparse_detr'] = None\n"
        "import importlib.util, torch\n"
        f"spec = importlib.util.spec_from_file_location('kernel', {str(folder / 'build/torch-cuda/__init__.py')!r})\n"
        "kernel = importlib.util.module_from_spec(spec); sys.modules['kernel'] = kernel\n"
        "spec.loader.exec_module(kernel)\n"
        "value = torch.arange(12.0).view(1, 6, 1, 2); place = torch.tensor([2.5 / 3, 0.75]).view(1, 1, 1, 1, 1, 2)\n"
        "print(kernel.multi_scale_deformable_attention(value, [(2, 3)], place, torch.ones(1, 1, 1, 1, 1)).tolist())\n"
        f"sys.modules.pop('sparse_detr'); sys.path.insert(0, {str(HUB)!r})\n"
        "import make; from pathlib import Path\n"
        f"print(make.check(Path({str(folder)!r})))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env={**os.environ}, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == "[[[10.0, 11.0]]]"
    assert "its function and its layer equal the reference" in second


def test_every_import_is_relative_and_no_namespace_is_that_of_the_package(folder):
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert "from sparse_detr" not in text
        assert '"sparse_detr"' not in text
    library = (folder / "build/torch-cuda/library.py").read_text()
    assert "_sparse_detr_attention_" in library


def test_the_metadata_name_the_backend_and_change_with_the_sources(make, folder):
    records = {name: json.loads((folder / f"build/torch-{name}/metadata.json").read_text()) for name in ("cuda", "cpu")}
    assert {name: record["backend"]["type"] for name, record in records.items()} == {"cuda": "cuda", "cpu": "cpu"}
    assert records["cuda"]["id"] != records["cpu"]["id"]
    assert make.digest({"a.py": "x"}) != make.digest({"a.py": "y"})
    assert "someone/a-kernel" in (folder / "build.toml").read_text()
    assert "someone/a-kernel" in (folder / "README.md").read_text()


def test_the_layer_takes_what_that_of_transformers_takes():
    source = (HUB / "torch_ext" / "layers.py").read_text()
    positions = [source.index(f"        {name}") for name in patching.OF_LAYER]
    assert positions == sorted(positions)


def test_a_folder_that_holds_something_is_refused(make, folder):
    with pytest.raises(FileExistsError, match="is not empty; name a new folder"):
        make.make(folder, "someone/a-kernel")
