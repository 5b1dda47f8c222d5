import os
import platform
from importlib.util import find_spec

import numpy
import torch

from sparse_detr.cli import collect_env
from sparse_detr.cli.main import main


def test_the_command_prints_what_is_installed(capsys):
    assert main(["collect-env"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name: value.strip() for name, value in lines.items()}
    assert shown["torch"] == torch.__version__.partition("+")[0]
    assert shown["numpy"] == numpy.__version__
    assert shown["Python"].startswith(platform.python_version())
    assert shown["CPU"].startswith(f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}")
    assert shown["ops: reference"] == "PyTorch"


def test_a_missing_detectron2_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setattr(collect_env, "find_spec", lambda name: None if name == "detectron2" else find_spec(name))
    assert "scripts/install_detectron2.py" in collect_env.collect_env()["detectron2"]


def test_an_extension_of_detectron2_that_cannot_be_loaded_is_reported_with_the_reason(monkeypatch):
    def fail(name):
        raise ImportError(f"{name} needs another torch")

    monkeypatch.setattr(collect_env, "import_module", fail)
    assert "without _C, which is not needed (detectron2._C needs" in collect_env.collect_env()["detectron2"]


def test_an_absent_distribution_has_no_version():
    assert collect_env._version("no-such-distribution-here") == collect_env.MISSING


def test_a_backend_is_reported_with_its_build_or_the_reason_why_it_is_missing(monkeypatch):
    library = {"built": True, "variants": ["avx2", "baseline"], "compiler": "g++ 12"}
    record = {"torch": "2.11.0", "stable_abi": "2.10", "libraries": {"cpu": library}}
    missing = {"reference": None, "cpu": None, "triton": None, "cuda": "no GPU is visible"}
    monkeypatch.setattr("sparse_detr.ops.native.build_record", lambda: record)
    monkeypatch.setattr("sparse_detr.ops.native.cpu_isa", lambda: "avx2")
    monkeypatch.setattr("sparse_detr.ops.available_backends", lambda: missing)
    shown = collect_env.collect_env()
    built = "built for avx2, baseline by g++ 12 with torch 2.11.0, for stable ABI 2.10"
    assert shown["ops: cpu"] == f"avx2 kernels run here; {built}"
    assert shown["ops: cuda"] == "not available: no GPU is visible"
