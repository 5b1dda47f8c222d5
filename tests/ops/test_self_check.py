"""The self-check: GPU kernels are compared with the reference before the automatic choice uses them.

Fake kernels stand for those of a GPU here; `test_triton.py` checks the real Triton kernels in the interpreter.
"""

import warnings

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.cli import collect_env
from sparse_detr.ops import backends, choose_backend, multi_scale_deformable_attention, reference, self_check
from sparse_detr.ops.backends import Backend
from tests.ops.reference import random_samples, random_value

SHAPES = ((4, 6), (2, 3), (1, 1))


class Kernels:
    """Operators of a backend `triton` for CPU tensors: the reference with one fault."""

    def __init__(self):
        self.calls, self.fault = 0, lambda output: output

    def op(self, namespace, name):
        def run(*arguments):
            self.calls += 1
            return self.fault(getattr(reference, name)(*arguments))

        return run


@pytest.fixture
def kernels(monkeypatch):
    made = Kernels()
    found = {"triton": Backend("triton", None, ("cpu",)), "reference": Backend("reference", None, ())}
    monkeypatch.setattr(backends, "find_backend", found.get)
    monkeypatch.setattr(backends, "AUTOMATIC", {"cpu": ("triton",)})
    monkeypatch.setattr(self_check.library, "op", made.op)
    monkeypatch.setattr(self_check, "_results", {})
    monkeypatch.setattr(self_check, "_warned", set())
    monkeypatch.delenv("SPARSE_DETR_BACKEND", raising=False)
    return made


def call(dtype=torch.float32, **options):
    locations, weights = (x.to(torch.promote_types(dtype, torch.float32)) for x in random_samples(SHAPES))
    return multi_scale_deformable_attention(random_value(SHAPES).to(dtype), SHAPES, locations, weights, **options)


def raise_error(output):
    raise RuntimeError("no kernel image is available\nmore")


FAULTS = {
    "wrong numbers": (lambda output: output * 1.01, "the output is off by"),
    "NaN": (lambda output: output * torch.nan, "the output is off by nan"),
    "wrong gradients": (lambda output: output + (output - output.detach()), "the gradient of value is off by"),
    "an exception": (raise_error, "RuntimeError: no kernel image is available;"),
}


@pytest.mark.parametrize("dtype", self_check.TOLERANCES)
def test_kernels_that_equal_the_reference_are_chosen_and_checked_once(kernels, dtype):
    value = torch.zeros(1, 1, 1, 1, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(value) == "triton"
    calls = kernels.calls
    assert calls > 0
    assert choose_backend(value) == "triton"
    assert kernels.calls == calls


@pytest.mark.parametrize("fault", FAULTS)
def test_kernels_that_fail_are_replaced_by_the_reference_with_one_warning(kernels, fault):
    kernels.fault, message = FAULTS[fault]
    with pytest.warns(RuntimeWarning, match=message) as caught:
        output = call()
    assert len(caught) == 1
    assert "'reference' runs instead" in str(caught[0].message)
    assert "SPARSE_DETR_BACKEND=triton forces" in str(caught[0].message)
    assert_close(output, call(backend="reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_named_kernels_that_fail_run_with_one_warning(kernels, monkeypatch, how):
    kernels.fault = FAULTS["wrong numbers"][0]
    if how == "variable":
        monkeypatch.setenv("SPARSE_DETR_BACKEND", "triton")
    name = "triton" if how == "argument" else None
    with pytest.warns(RuntimeWarning, match="it runs all the same because it was named"):
        assert choose_backend(torch.zeros(1), name) == "triton"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(torch.zeros(1), name) == "triton"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_check_runs_in_any_mode(kernels, mode):
    with mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(torch.zeros(1)) == "triton"
    assert list(self_check._results.values()) == [None]


def test_nothing_is_checked_while_a_call_is_recorded(kernels):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert choose_backend(torch.zeros(1)) == "triton"
    torch.compile(lambda x: x + len(choose_backend(x)), backend="eager", fullgraph=True)(torch.zeros(1))
    assert kernels.calls == 0
    assert self_check._results == {}


def test_a_compiled_call_skips_kernels_that_have_failed(kernels):
    kernels.fault = FAULTS["NaN"][0]
    with pytest.warns(RuntimeWarning, match="failed their self-check"):
        choose_backend(torch.zeros(1))
    compiled = torch.compile(lambda x: x + len(choose_backend(x)), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == len("reference")


def test_the_random_state_of_the_caller_does_not_change(kernels):
    torch.manual_seed(0)
    choose_backend(torch.zeros(1))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_collect_env_shows_the_result(kernels, monkeypatch):
    monkeypatch.setattr("sparse_detr.ops.available_backends", lambda: {"triton": None, "cuda": "no GPU"})
    assert "self-check passed in float32, bfloat16, float16" in collect_env._backends()["ops: triton"]
    self_check._results.clear()
    kernels.fault = FAULTS["NaN"][0]
    assert "self-check FAILED, float32: the output is off by nan" in collect_env._backends()["ops: triton"]
