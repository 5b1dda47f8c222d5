"""Nothing heavy is imported before it is needed."""

import json
import subprocess
import sys

import pytest

from sparse_detr.checkpoint.layouts import LAYOUTS
from sparse_detr.cli.convert import SOURCES
from sparse_detr.cli.main import command_modules

HEAVY = ["torch", "detectron2", "torchvision", "numpy", "matplotlib", "PIL", "fvcore", "omegaconf"]


def imported_by(code):
    """Return which of the heavy packages a new Python has imported after some code."""
    end = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_the_package_imports_nothing_heavy():
    assert imported_by("import sparse_detr") == []


@pytest.mark.parametrize("command", ["", *command_modules()])
def test_help_imports_nothing_heavy(command):
    words = [*filter(None, [command.replace("_", "-")]), "--help"]
    code = f"from sparse_detr.cli.main import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
    assert imported_by(code) == []


def test_the_counter_of_fvcore_learns_our_operators_when_it_is_imported():
    code = """
import sparse_detr
from fvcore.nn import FlopCountAnalysis
from importlib import import_module
known = import_module("fvcore.nn.flop_count")._DEFAULT_SUPPORTED_OPS
assert "aten::scaled_dot_product_attention" in known
assert "sparse_detr::deformable_attention" in known
"""
    assert "fvcore" in imported_by(code)


def test_the_counter_of_fvcore_learns_our_operators_if_it_was_imported_before():
    code = """
from importlib import import_module
known = import_module("fvcore.nn.flop_count")._DEFAULT_SUPPORTED_OPS
assert "sparse_detr::deformable_attention" not in known
import sparse_detr
assert "sparse_detr::deformable_attention" in known
"""
    assert "fvcore" in imported_by(code)


def test_convert_names_all_layouts():
    assert tuple(LAYOUTS) == SOURCES
