"""What a built distribution holds besides the modules."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_a_build_contains_the_shared_and_the_projects_configs(tmp_path):
    options = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *options], cwd=REPOSITORY, check=True, capture_output=True)
    built = tmp_path / "lib" / "sparse_detr" / "_configs"
    folders = [REPOSITORY / "configs", *REPOSITORY.glob("projects/*/configs")]
    sources = {p.relative_to(REPOSITORY) for folder in folders for p in folder.rglob("*.*") if p.suffix != ".pyc"}
    assert {path.relative_to(built) for path in built.rglob("*.*")} == sources
    assert not list(built.rglob("__pycache__"))
