"""The choices and messages of ops/build.py; the compilers in these tests are scripts that compile nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

PRETEND = """#!/bin/sh
for argument in "$@"; do
    if [ "$argument" = --version ]; then echo "{name} 1.0"; exit 0; fi
done
echo "$@" >> "{log}"
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then echo made > "$2"; fi
    shift
done
"""
PRETEND_TO_FAIL = """#!/bin/sh
if [ "$1" = --version ]; then echo "g++ 1.0"; exit 0; fi
echo "kernels.cpp:3:1: error: no such thing as a reduction" >&2
exit 1
"""
PRETEND_NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1"; exit 0;;
--list-gpu-arch) printf "compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\n"; exit 0;;
--dryrun) echo "#$ TOP={toolkit}/bin/.." >&2; exit 0;;
esac
echo "$@" >> "{log}"
while [ $# -gt 1 ]; do
    if [ "$1" = -o ]; then echo made > "$2"; fi
    shift
done
"""


@pytest.fixture
def builder(monkeypatch, tmp_path):
    """Return ops/build.py with fake sources, PyTorch and g++; `calls()` returns the commands that g++ got."""
    spec = importlib.util.spec_from_file_location("build_under_test", REPOSITORY / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    for name in ("SPARSE_DETR_BUILD_OPS", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "SOURCES", tmp_path / "csrc")
    monkeypatch.setattr(module, "visible_architectures", list)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    write(tmp_path / "torch" / "version.py", "__version__ = '2.12.1+cu130'\ncuda: Optional[str] = '13.0'\n")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("common.h", "cpu/kernels.cpp", "cpu/register.cpp", "cuda/kernels.cu"):
        write(tmp_path / "csrc" / name, f"// {name}\n")
    log = tmp_path / "log"
    log.touch()
    write(tmp_path / "bin" / "g++", PRETEND.format(name="g++", log=log), 0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    module.calls = lambda: log.read_text().splitlines()
    module.run = lambda **options: module.build(tmp_path / "out", objects=tmp_path / "objects", **options)
    return module


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def give_nvcc(tmp_path, release="13.0"):
    """Make a fake CUDA toolkit under tmp_path, and on PATH a script that calls its nvcc."""
    toolkit = tmp_path / "toolkit"
    nvcc = PRETEND_NVCC.format(release=release, toolkit=toolkit, log=tmp_path / "log")
    write(toolkit / "bin" / "nvcc", nvcc, 0o755)
    (toolkit / "lib64").mkdir(exist_ok=True)
    write(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n', 0o755)


def without_compilers(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def test_each_instruction_set_is_compiled_with_its_flags_and_all_are_linked(builder, tmp_path, capsys):
    record = builder.run()
    compiled = [call for call in builder.calls() if "kernels.cpp" in call]
    assert len(compiled) == 3
    assert sum("-mavx512f" in call and "-DSPARSE_DETR_ISA=avx512" in call for call in compiled) == 1
    assert sum(any(word.startswith("-m") for word in call.split()) for call in compiled) == 2
    assert all("-DTORCH_TARGET_VERSION=0x020a000000000000" in call for call in compiled)
    assert not any("fast-math" in call for call in builder.calls())
    assert (tmp_path / "out" / "libsparse_detr_cpu.so").read_text() == "made\n"
    assert record == builder.read_record(tmp_path / "out")
    assert record["libraries"]["cpu"]["compiler"] == "g++ 1.0"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sparse_detr ops: [1/5] cpu/")
    assert lines[-1].startswith("sparse_detr ops: built cpu (avx512, avx2, baseline) ; not built cuda: no nvcc on PATH")


def test_only_the_baseline_is_compiled_off_x86(builder, monkeypatch):
    monkeypatch.setattr(builder.platform, "machine", lambda: "aarch64")
    assert builder.run()["libraries"]["cpu"]["variants"] == ["baseline"]


def test_unchanged_sources_are_not_compiled_again(builder, tmp_path):
    record = builder.run()
    before = len(builder.calls())
    assert builder.run() == record
    assert len(builder.calls()) == before
    write(tmp_path / "csrc" / "cpu" / "register.cpp", "// changed\n")
    builder.run()
    assert ["register.cpp" in call for call in builder.calls()[before:]] == [True, False]  # plus the link
    write(tmp_path / "csrc" / "common.h", "// changed\n")
    builder.run()
    assert len(builder.calls()) == before + 2 + 5
    assert len(list((tmp_path / "objects").iterdir())) == 4


def test_a_missing_library_is_linked_again(builder, tmp_path):
    builder.run()
    (tmp_path / "out" / "libsparse_detr_cpu.so").unlink()
    builder.run()
    assert (tmp_path / "out" / "libsparse_detr_cpu.so").is_file()
    assert len(builder.calls()) == 6


def test_a_library_of_another_size_is_linked_again(builder, tmp_path):
    record = builder.run()
    library = tmp_path / "out" / "libsparse_detr_cpu.so"
    whole = library.read_bytes()
    library.write_bytes(whole + b"x")
    builder.run()
    assert library.read_bytes() == whole
    assert record["libraries"]["cpu"]["bytes"] == len(whole)
    assert len(builder.calls()) == 6


def test_without_a_compiler_auto_continues_and_tells_why(builder, monkeypatch, tmp_path):
    without_compilers(monkeypatch, tmp_path)
    record = builder.run()
    assert "no C++ compiler: none of g++, clang++, c++ can be run" in record["libraries"]["cpu"]["reason"]
    assert "not built cpu: no C++ compiler" in record["summary"]


def test_a_failing_compiler_leaves_its_first_error_and_no_old_library(builder, tmp_path, capsys):
    builder.run()
    write(tmp_path / "bin" / "g++", PRETEND_TO_FAIL, 0o755)
    write(tmp_path / "csrc" / "common.h", "// changed\n")
    record = builder.run()
    assert "error: no such thing as a reduction" in record["libraries"]["cpu"]["reason"]
    assert not (tmp_path / "out" / "libsparse_detr_cpu.so").exists()
    assert "no such thing" in capsys.readouterr().out


def test_a_read_only_folder_is_no_error_for_auto(builder, tmp_path):
    write(tmp_path / "out", "a file where the folder should be")
    assert "not built cpu, cuda" in builder.run()["summary"]


@pytest.mark.parametrize(
    ("version", "reason"),
    [("2.9.1+cpu", "PyTorch 2.9.1+cpu is older than 2.10"), (None, "no PyTorch in this environment at build time")],
)
def test_an_old_or_missing_torch_is_no_error_for_auto(builder, tmp_path, version, reason):
    path = tmp_path / "torch" / "version.py"
    path.write_text(f"__version__ = '{version}'\ncuda = None\n") if version else path.unlink()
    assert builder.run()["summary"].startswith(f"sparse_detr ops: not built cpu, cuda: {reason}")
    assert builder.calls() == []


@pytest.mark.parametrize("choice", ["cpu", "cuda"])
def test_an_explicit_choice_that_cannot_be_met_is_an_error_with_the_reason(builder, monkeypatch, tmp_path, choice):
    without_compilers(monkeypatch, tmp_path)
    monkeypatch.setenv("SPARSE_DETR_BUILD_OPS", choice)
    with pytest.raises(builder.BuildError, match=rf"SPARSE_DETR_BUILD_OPS={choice} cannot be met.*no C\+\+ compiler"):
        builder.run()


def test_an_unknown_choice_is_an_error_that_names_the_known_ones(builder):
    with pytest.raises(builder.BuildError, match="'gpu'; it can be auto, cpu, cuda, none"):
        builder.run(choice="gpu")


def test_none_removes_what_was_built(builder, tmp_path):
    builder.run()
    record = builder.run(choice="none")
    assert record["summary"] == "sparse_detr ops: not built cpu, cuda: SPARSE_DETR_BUILD_OPS=none"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["build.json"]


def test_cuda_is_built_when_a_gpu_is_visible_or_it_is_forced(builder, monkeypatch, tmp_path):
    give_nvcc(tmp_path)
    assert "no GPU is visible (FORCE_CUDA=1" in builder.run()["libraries"]["cuda"]["reason"]
    monkeypatch.setenv("FORCE_CUDA", "1")
    assert builder.run()["libraries"]["cuda"]["variants"] == ["7.5", "8.0", "9.0+PTX"]
    monkeypatch.delenv("FORCE_CUDA")
    monkeypatch.setattr(builder, "visible_architectures", lambda: ["9.0"])
    assert builder.run()["libraries"]["cuda"]["variants"] == ["9.0"]
    assert builder.run(choice="cuda")["libraries"]["cpu"]["built"]


def test_the_toolkit_is_found_behind_a_script_on_the_path(builder, monkeypatch, tmp_path):
    give_nvcc(tmp_path)
    toolkit, nvcc = builder.find_nvcc()
    assert toolkit == tmp_path / "toolkit"
    assert builder.cuda_release(nvcc) == (13, 0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(builder.BuildError, match="no nvcc in .*/nowhere/bin, which CUDA_HOME names"):
        builder.find_nvcc()


def test_another_cuda_than_that_of_pytorch_is_a_reason_for_auto_and_a_warning_for_cuda(
    builder, monkeypatch, tmp_path, capsys
):
    give_nvcc(tmp_path, release="12.8")
    monkeypatch.setattr(builder, "visible_architectures", lambda: ["8.0"])
    mismatch = "nvcc is of CUDA 12.8 and PyTorch 2.12.1+cu130 of CUDA 13.0"
    assert mismatch in builder.run()["libraries"]["cuda"]["reason"]
    assert builder.run(choice="cuda")["libraries"]["cuda"]["built"]
    assert f"warning: {mismatch}" in capsys.readouterr().out


def test_a_torch_without_cuda_gets_no_cuda_library(builder, tmp_path):
    give_nvcc(tmp_path)
    write(tmp_path / "torch" / "version.py", "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert builder.run()["libraries"]["cuda"]["reason"] == "PyTorch 2.13.0+cpu is built without CUDA"


@pytest.mark.parametrize(
    ("named", "found", "chosen"),
    [
        ("8.0;9.0+PTX", [], ["8.0", "9.0+PTX"]),
        ("8.0 9.0a, 8.0", ["7.5"], ["8.0", "9.0a"]),
        ("", ["8.0", "9.0"], ["8.0", "9.0"]),
        ("", [], ["7.5", "8.0", "9.0+PTX"]),
        ("", ["12.0"], ["7.5", "8.0", "9.0+PTX"]),  # newer than nvcc: PTX
    ],
)
def test_architectures_are_the_named_ones_else_the_found_ones_else_the_default(builder, named, found, chosen):
    assert builder.choose_architectures(named, found, ["7.5", "8.0", "9.0", "10.0"]) == chosen


@pytest.mark.parametrize(
    ("named", "message"), [("Hopper", "holds 'Hopper'; write numbers"), ("7.0", "does not know 7.0")]
)
def test_architectures_that_nvcc_does_not_take_are_named(builder, named, message):
    with pytest.raises(builder.BuildError, match=message):
        builder.choose_architectures(named, [], ["7.5", "8.0"])


def test_ptx_is_generated_only_on_request(builder):
    assert builder.code_flags(["8.0", "10.0+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_compilers_run_in_parallel(builder, monkeypatch, tmp_path):
    """Each fake compiler waits until another one has started."""
    monkeypatch.setenv("MAX_JOBS", "2")
    started = tmp_path / "started"
    started.mkdir()
    wait = f"""
case "$*" in
*-shared*) ;;
*)  : > {started}/$$
    for tick in 1 2 3 4 5 6 7 8 9 10; do
        if [ "$(echo {started}/*)" != {started}/$$ ]; then tick=; break; fi
        /bin/sleep 1
    done
    if [ "$tick" ]; then exit 1; fi;;
esac
while"""
    write(tmp_path / "bin" / "g++", PRETEND.format(name="g++", log=tmp_path / "log").replace("while", wait, 1), 0o755)
    assert builder.run()["libraries"]["cpu"]["built"]
