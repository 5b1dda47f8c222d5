"""Content of the built distributions besides the modules."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "pretends to compile"; exit 0; fi
while [ "$1" != -o ]; do shift; done
echo made > "$2"
"""


def test_a_build_contains_the_shared_and_the_projects_configs(tmp_path):
    options = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *options], cwd=REPOSITORY, check=True, capture_output=True)
    built = tmp_path / "lib" / "sparse_detr" / "_configs"
    folders = [REPOSITORY / "configs", *REPOSITORY.glob("projects/*/configs")]
    sources = {p.relative_to(REPOSITORY) for folder in folders for p in folder.rglob("*.*") if p.suffix != ".pyc"}
    assert {path.relative_to(built) for path in built.rglob("*.*")} == sources
    assert not list(built.rglob("__pycache__"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the folder of an unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    setup("egg_info", "--egg-base", str(folder), "sdist", "--dist-dir", str(folder))
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def setup(*arguments, folder=REPOSITORY, **environment):
    """Run setup.py and return all that it prints."""
    command = [sys.executable, "setup.py", *arguments]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(command, cwd=folder, check=True, env=os.environ | environment, **output).stdout


def test_a_source_distribution_holds_the_native_sources_and_no_builds(sources):
    kept = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "ops").rglob("*") if path.suffix in (".cpp", ".h")}
    assert kept <= {path.relative_to(sources) for path in sources.rglob("*")}
    assert (sources / "ops" / "build.py").is_file()
    assert not list(sources.rglob("_native"))
    assert not list(sources.rglob("*.so"))


def build_wheel(sources, folder, **environment):
    said = setup("bdist_wheel", "--dist-dir", str(folder), folder=sources, **environment)
    [wheel] = folder.glob("*.whl")
    return said, wheel


@pytest.mark.skipif(torch.__version__ < (2, 10), reason="the libraries need the stable ABI of torch 2.10")
def test_a_wheel_with_a_native_library_is_for_this_platform_and_any_python_3(sources, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    said, wheel = build_wheel(sources, tmp_path, CXX=str(compiler), SPARSE_DETR_BUILD_OPS="cpu")
    assert "sparse_detr ops: built cpu" in said
    assert "-py3-none-linux_" in wheel.name
    names = ZipFile(wheel).namelist()
    assert {"sparse_detr/ops/_native/libsparse_detr_cpu.so", "sparse_detr/ops/_native/build.json"} <= set(names)
    assert "sparse_detr/ops/__init__.py" in names
    assert not [name for name in names if "purelib" in name or name.startswith("ops/")]


def test_a_wheel_without_native_libraries_is_for_every_platform_and_the_build_says_why(sources, tmp_path):
    said, wheel = build_wheel(sources, tmp_path, SPARSE_DETR_BUILD_OPS="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = [name for name in ZipFile(wheel).namelist() if "_native" in name]
    assert names == ["sparse_detr/ops/_native/build.json"]
    assert json.loads(ZipFile(wheel).read(names[0]))["summary"] in said


def test_native_libraries_that_cannot_be_built_end_the_install_with_the_reason(sources):
    with pytest.raises(subprocess.CalledProcessError) as failure:
        setup("build", folder=sources, CXX="no-such-compiler", SPARSE_DETR_BUILD_OPS="cpu")
    last = failure.value.output.splitlines()[-1]
    assert last.startswith("error: SPARSE_DETR_BUILD_OPS=cpu cannot be met. cpu library: ")
