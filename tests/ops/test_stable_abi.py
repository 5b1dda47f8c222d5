"""One built CPU library gives the same numbers under two versions of PyTorch.

The test runs if SPARSE_DETR_OTHER_PYTHON names the interpreter of an environment with another PyTorch from 2.10 on:

    SPARSE_DETR_OTHER_PYTHON=other/bin/python python -m pytest tests/ops/test_stable_abi.py -rP
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_detr.ops import native

REPOSITORY = Path(__file__).parents[2]
OTHER_PYTHON = os.environ.get("SPARSE_DETR_OTHER_PYTHON")

# Inputs come from numpy, because random numbers of torch may differ between versions.
PROGRAM = """
import hashlib, json
import numpy, torch
from sparse_detr import ops

random = numpy.random.default_rng(0)
shapes = [(9, 7), (5, 4)]
draw = lambda *size: torch.from_numpy(random.standard_normal(size))
results = {}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    small = torch.float64 if dtype == torch.float64 else torch.float32
    value = draw(2, 83, 4, 24).to(dtype).requires_grad_()
    for size in (2, 4):
        references = draw(2, 11, 2, size).to(small).sigmoid().requires_grad_()
        offsets = draw(2, 11, 4, 2, 3, 2).to(small).requires_grad_()
        logits = draw(2, 11, 4, 2, 3).to(small).requires_grad_()
        inputs = [value, references, offsets, logits]
        output = ops.fused_deformable_attention(value, shapes, references, offsets, logits, backend="cpu")
        gradients = torch.autograd.grad(output, inputs, draw(2, 11, 96).to(dtype))
        map = ops.splat_attention(shapes, offsets.detach().sigmoid(), logits.detach().softmax(-1), backend="cpu")
        bits = b"".join(x.detach().double().numpy().tobytes() for x in [output, *gradients, map])
        results[f"{dtype}, {size}"] = hashlib.sha256(bits).hexdigest()
path = str(ops.native.status()["cpu"].path)
print(json.dumps({"torch": torch.__version__, "library": path, "isa": ops.native.cpu_isa(), "results": results}))
"""


def run_under(python):
    """Run PROGRAM with that interpreter and the library of this one; return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "SPARSE_DETR_NATIVE_DIR": str(native.folder().resolve())}
    output = subprocess.run([python, "-c", PROGRAM], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.mark.skipif(not OTHER_PYTHON, reason="SPARSE_DETR_OTHER_PYTHON names no interpreter with another PyTorch")
def test_the_same_file_gives_the_same_bits_under_two_versions_of_pytorch():
    here, there = run_under(sys.executable), run_under(OTHER_PYTHON)
    digest = hashlib.sha256(Path(here["library"]).read_bytes()).hexdigest()
    print(f"{here['library']} ({digest[:16]}, {here['isa']}): torch {here['torch']} and {there['torch']} agree")
    assert here["torch"] != there["torch"]
    assert here["library"] == there["library"]
    assert here["results"] == there["results"]
