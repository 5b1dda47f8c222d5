"""The CPU library has kernels for several instruction sets; a process runs the best, and these tests the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_detr.ops import native

ROOT = Path(__file__).parents[2]
BETTER = {"baseline": ("avx2", "avx512"), "avx2": ("avx512",)}
FILES = [f"tests/ops/test_{name}.py" for name in ("deformable_attention", "fused")]
# All dtypes, and both ways to read the value, against plain loops.
TESTS = "cpu and (test_output_and_gradients_equal_plain_loops or few_for_the_size_of_the_maps)"
SCRIPT = """
import sys, pytest
from sparse_detr.ops import native
assert native.cpu_isa() == sys.argv[1], native.cpu_isa()
sys.exit(pytest.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("isa", BETTER)
def test_a_smaller_instruction_set_equals_plain_loops(isa):
    if native.cpu_isa() not in BETTER[isa]:
        pytest.skip(f"{native.cpu_isa() or 'no library'} is not better than {isa}")
    environment = os.environ | {
        "SPARSE_DETR_CPU_ISA": isa,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-c", SCRIPT, isa, "-q", "-p", "no:cacheprovider", *FILES, "-k", TESTS]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
