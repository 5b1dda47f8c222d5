"""Detectron2's own tools know our keys and names through an environment variable."""

import os
import subprocess
import sys

CODE = """
import detectron2.utils.env
detectron2.utils.env.setup_environment()
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
print(get_cfg().MODEL.DETR.KEEP_RATIO, get_cfg().SOLVER.OPTIMIZER, "SparseDETR" in META_ARCH_REGISTRY)
"""


def test_environment_module_adds_keys_and_names():
    environment = {**os.environ, "DETECTRON2_ENV_MODULE": "sparse_detr.env"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "ADAMW", "True"]
