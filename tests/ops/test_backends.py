"""The choice of a backend by device, name and environment; a backend that is not available tells why."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparse_detr.ops import (
    available_backends,
    backends,
    choose_backend,
    multi_scale_deformable_attention,
    native,
    splat_attention,
)
from tests.ops.reference import random_samples, random_value

VALUE = torch.zeros(1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Remove choices of the environment and cached backends."""
    monkeypatch.delenv("SPARSE_DETR_BACKEND", raising=False)
    forget()
    yield
    forget()


def forget():
    backends.find_backend.cache_clear()


def pretend(monkeypatch, **unavailable):
    """Make backends available (None) or not (the reason)."""
    real = backends.find_backend

    def find(name):
        if name not in unavailable:
            return real(name)
        return backends.Backend(name, unavailable[name], ("cuda",) if name == "triton" else (name,))

    find.cache_clear = lambda: None
    monkeypatch.setattr(backends, "find_backend", find)


def test_every_backend_is_listed_and_the_reference_always_runs():
    assert list(available_backends()) == ["reference", "gather", "cpu", "triton", "cuda"]
    assert available_backends()["reference"] is None


def test_cpu_tensors_take_the_native_library_where_it_is_built_else_the_reference(monkeypatch):
    pretend(monkeypatch, cpu=None)
    assert choose_backend(VALUE) == "cpu"
    pretend(monkeypatch, cpu="not built")
    assert choose_backend(VALUE) == "reference"


@pytest.mark.parametrize(
    ("triton", "cuda", "expected"),
    [(None, None, "triton"), ("none", None, "cuda"), (None, "none", "triton"), ("none", "none", "reference")],
)
def test_cuda_tensors_take_triton_then_the_native_library_then_the_reference(monkeypatch, triton, cuda, expected):
    pretend(monkeypatch, triton=triton, cuda=cuda)
    with torch._subclasses.FakeTensorMode():
        assert choose_backend(torch.empty(1, device="cuda")) == expected


def test_tensors_on_other_devices_take_the_reference():
    assert choose_backend(VALUE.to("meta")) == "reference"


def test_the_argument_comes_before_the_environment_and_that_before_the_automatic_choice(monkeypatch):
    pretend(monkeypatch, cpu=None)
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "reference")
    assert choose_backend(VALUE) == "reference"
    assert choose_backend(VALUE, "cpu") == "cpu"
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "")
    assert choose_backend(VALUE) == "cpu"


def test_use_backend_comes_after_the_argument_and_before_the_environment(monkeypatch):
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "reference")
    with backends.use_backend("gather"):
        assert choose_backend(VALUE) == "gather"
        assert choose_backend(VALUE, "reference") == "reference"
        with ThreadPoolExecutor() as pool:
            assert pool.submit(choose_backend, VALUE).result() == "reference"
    assert choose_backend(VALUE) == "reference"
    with backends.use_backend("gpu"), pytest.raises(ValueError, match="use_backend must be one of .* got 'gpu'"):
        choose_backend(VALUE)


def test_gather_works_where_grid_sample_is_missing(monkeypatch):
    shapes = ((2, 3), (1, 2))
    value, (locations, weights) = random_value(shapes), random_samples(shapes)
    expected = multi_scale_deformable_attention(value, shapes, locations, weights, backend="reference")
    monkeypatch.delattr(torch.nn.functional, "grid_sample")
    found = multi_scale_deformable_attention(value, shapes, locations, weights, backend="gather")
    torch.testing.assert_close(found, expected)
    with pytest.raises(AttributeError):
        multi_scale_deformable_attention(value, shapes, locations, weights, backend="reference")


def test_an_unknown_name_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="the argument backend must be one of reference, gather, cpu, .* got 'gpu'"):
        choose_backend(VALUE, "gpu")
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "fast")
    with pytest.raises(ValueError, match="SPARSE_DETR_BACKEND must be one of .* got 'fast'"):
        choose_backend(VALUE)


def test_a_named_backend_that_is_not_available_is_an_error_with_the_reason(monkeypatch):
    pretend(monkeypatch, cpu="there is no compiler")
    with pytest.raises(RuntimeError, match="asks for 'cpu', which is not available here: there is no compiler"):
        choose_backend(VALUE, "cpu")
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "cpu")
    with pytest.raises(RuntimeError, match="SPARSE_DETR_BACKEND asks for 'cpu'"):
        splat_attention(((2, 2),), *random_samples(((2, 2),)))


def test_a_backend_of_another_device_is_an_error(monkeypatch):
    pretend(monkeypatch, cuda=None)
    with pytest.raises(RuntimeError, match="'cuda', which takes tensors on cuda, but value is on cpu"):
        choose_backend(VALUE, "cuda")


def test_the_reference_is_the_automatic_choice_where_kernels_lack_the_derivative(monkeypatch):
    pretend(monkeypatch, cpu=None)
    assert choose_backend(VALUE, differentiable=True) == "reference"
    assert choose_backend(VALUE, "cpu", differentiable=True) == "cpu"
    monkeypatch.setenv("SPARSE_DETR_BACKEND", "cpu")
    assert choose_backend(VALUE, differentiable=True) == "cpu"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend that there are a new GPU, Triton and a C compiler, and no other program."""
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device))
    # Neither Triton nor its kernels are imported here, because the import decides whether they are interpreted.
    monkeypatch.setitem(sys.modules, "sparse_detr.ops.triton_backend", object())
    monkeypatch.setattr("sparse_detr.ops.triton_backend", object(), raising=False)
    monkeypatch.setattr(backends.library, "register_kernels", lambda *arguments: None)
    for variable in ("TRITON_INTERPRET", "CC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    return compiler


def test_triton_is_available_with_a_new_gpu_and_a_compiler(gpu, monkeypatch):
    assert available_backends()["triton"] is None
    forget()
    monkeypatch.setenv("CC", "my-compiler")
    gpu.unlink()
    assert available_backends()["triton"] is None


def test_triton_without_a_compiler_is_not_available(gpu):
    gpu.unlink()
    assert "needs a C compiler, and there is neither gcc nor clang" in available_backends()["triton"]


def test_triton_with_an_old_gpu_is_not_available(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9 - 3 * device, 1))
    assert "needs compute capability 7.0, but a GPU here has 6.1" in available_backends()["triton"]


def test_a_triton_that_does_not_import_is_not_available(gpu, monkeypatch):
    monkeypatch.delattr("sparse_detr.ops.triton_backend")
    monkeypatch.setitem(sys.modules, "sparse_detr.ops.triton_backend", None)  # makes the import fail
    assert available_backends()["triton"].startswith("the package triton cannot be imported (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_without_a_gpu_the_cuda_backends_say_so(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="'triton', which is not available here: .*(no CUDA GPU|not installed)"):
        choose_backend(VALUE, "triton")
    with pytest.raises(RuntimeError, match="'cuda', which is not available here: "):
        choose_backend(VALUE, "cuda")


@pytest.fixture
def native_folder(monkeypatch, tmp_path):
    """Replace the folder of built libraries by an empty one, with a PyTorch that could load some."""
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    monkeypatch.setenv("SPARSE_DETR_NATIVE_DIR", str(tmp_path))
    native.load.cache_clear()
    yield tmp_path
    native.load.cache_clear()


def test_a_library_that_was_never_built_says_how_to_build_it(native_folder):
    assert native.build_record() == {}
    assert native.cpu_isa() is None
    for library in native.status().values():
        assert library.path is None
        assert library.unavailable.startswith("it is not built; build it with `python ops/build.py`")


def test_a_library_that_could_not_be_built_says_why(native_folder):
    record = {"libraries": {"cpu": {"built": False, "reason": "g++ is not installed"}}}
    (native_folder / "build.json").write_text(json.dumps(record))
    assert native.status()["cpu"].unavailable.startswith("g++ is not installed; build it")
    assert native.build_record() == record


def test_a_damaged_record_of_the_build_is_taken_as_missing(native_folder):
    (native_folder / "build.json").write_text('{"libraries": ')
    assert native.build_record() == {}
    assert native.status()["cpu"].unavailable.startswith("it is not built; ")


def test_a_truncated_library_is_not_loaded(native_folder):
    header = bytearray(64)
    header[:5] = b"\x7fELF\x02"
    header[0x28:0x30] = (600_000).to_bytes(8, "little")  # offset of the section table
    header[0x3A:0x3E] = bytes([64, 0, 30, 0])
    (native_folder / "libsparse_detr_cpu.so").write_bytes(header)
    assert "is cut short, 64 bytes are left; build it" in native.status()["cpu"].unavailable


def test_a_library_that_does_not_load_gives_the_reason_and_is_not_used(native_folder):
    (native_folder / "libsparse_detr_cpu.so").write_bytes(b"not a library")
    library = native.status()["cpu"]
    assert library.path == native_folder / "libsparse_detr_cpu.so"
    assert library.unavailable.startswith("libsparse_detr_cpu.so does not load (")
    assert choose_backend(VALUE) == "reference"


def test_a_torch_that_is_too_old_loads_no_library(native_folder, monkeypatch):
    (native_folder / "libsparse_detr_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    assert native.status()["cpu"].unavailable.startswith("torch 2.9.1+cu128 is older than 2.10, ")


def test_a_library_that_was_built_for_this_torch_loads():
    """A library that was built here must load here; otherwise the test fails."""
    library = native.status()["cpu"]
    if library.path is None or native.unsuited_torch("cpu"):
        pytest.skip(f"the CPU library: {library.unavailable}")
    assert library.unavailable is None
    assert native.cpu_isa() in ("avx512", "avx2", "baseline")


def test_importing_the_ops_imports_neither_triton_nor_a_compiler():
    script = (
        "import sys, sparse_detr.ops; print({'triton', 'torch._dynamo', 'torch.utils.cpp_extension'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
