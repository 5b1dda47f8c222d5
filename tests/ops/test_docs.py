"""The page for users of the op alone: its example runs, and its signatures are those of the functions."""

import inspect
import re
from pathlib import Path

import pytest

from sparse_detr import ops

PAGE = (Path(__file__).parents[2] / "docs" / "ops.md").read_text()


def test_the_example_runs():
    example = PAGE.split("```python\n")[1].split("```")[0]
    names = {}
    exec(compile(example, "docs/ops.md", "exec"), names)
    assert names["output"].shape == (1, 100, 256)
    assert names["value"].grad.any()


SIGNATURES = dict(re.findall(r"`(\w+)\((\w[^)]*)\)`", PAGE.split("## Functions")[1].split("\n## ")[0]))


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_those_of_the_functions(name):
    parameters = inspect.signature(getattr(ops, name)).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


def test_every_public_function_is_on_the_page():
    assert len(SIGNATURES) >= 7
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert functions - set(SIGNATURES) - {"available_backends"} == {"locate_samples", "sampling_locations"}
