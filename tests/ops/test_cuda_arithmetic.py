"""The CUDA kernels on the host: `native/cuda_on_host.cpp` runs the code of every thread, block by block.

The tests cover the arithmetic, the division of the work, the barriers and the shared memory. What only a GPU has
(its compiler, atomics, launches) is tested by `ops/check_gpu.py`.
"""

import ctypes
import math
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.ops.reference import (
    TOLERANCES,
    attend,
    attend_gradients,
    fuse,
    fuse_gradients,
    random_padding,
    random_predictions,
    random_samples,
    random_value,
    relative_error,
    splat,
)

REPOSITORY = Path(__file__).parents[2]
NATIVE = Path(__file__).parent / "native"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
SHAPES = ((4, 6), (2, 3), (1, 1))
FIVE_LEVELS = ((5, 7), (4, 3), (2, 2), (1, 3), (1, 1))
GRADIENTS = ("value", "points", "weights", "references")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"there is no compiler {COMPILER[0]}")


class Call(ctypes.Structure):
    """The struct `Call` of cuda_on_host.cpp."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("batch", "queries", "heads", "channels")],
        *[(name, ctypes.c_int64) for name in ("num_levels", "num_points", "reference_dim")],
        ("spatial_shapes", ctypes.c_void_p),
        ("dtype", ctypes.c_char_p),
        *[(name, ctypes.c_int64) for name in ("reverse", "vector_atomics", "deterministic")],
        *[(name, ctypes.c_void_p) for name in ("value", "points", "weights", "references", "padding_mask", "output")],
        *[(name, ctypes.c_void_p) for name in ("grad_output", *(f"grad_{name}" for name in GRADIENTS))],
        ("pixel_offset", ctypes.c_double),
    ]


class Kernels:
    """The kernels as functions of tensors."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.largest_number.restype = ctypes.c_float
        self.library.largest_number.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool]
        self.library.fixed_scale.restype = ctypes.c_double
        self.library.fixed_scale.argtypes = [ctypes.c_double, ctypes.c_double, ctypes.c_bool]

    def forward(self, value, shapes, points, weights, references=None, padding=None, **how):
        output = torch.full((*points.shape[:2], value[0, 0].numel()), math.nan, dtype=value.dtype)
        self._run("run_forward", shapes, value, points, weights, references, padding, {"output": output}, how)
        return output

    def backward(
        self, grad_output, value, shapes, points, weights, references=None, padding=None, need=GRADIENTS, **how
    ):
        """Return gradients by name; that of the references is summed over heads."""
        if references is None:
            need = [name for name in need if name != "references"]
        accumulated = value.dtype if how.get("deterministic") else points.dtype
        by_head = None
        if references is not None:
            by_head = references[:, :, None].repeat(1, 1, points.shape[2], 1, 1)
        inputs = {"value": value.to(accumulated), "points": points, "weights": weights, "references": by_head}
        # The kernel adds to the gradient of the value, and writes all others.
        gradients = {name: torch.full_like(inputs[name], 0 if name == "value" else math.nan) for name in need}
        pointers = {f"grad_{name}": gradient for name, gradient in gradients.items()}
        tensors = {"grad_output": grad_output, **pointers}
        self._run("run_backward", shapes, value, points, weights, references, padding, tensors, how)
        if "value" in gradients:
            gradients["value"] = gradients["value"].to(value.dtype)
        if "references" in gradients:
            gradients["references"] = gradients["references"].sum(2)
        return gradients

    def splat(self, shapes, locations, weights, pixel_offset, **how):
        output = locations.new_full((len(locations), sum(h * w for h, w in shapes)), math.nan)
        how = {"pixel_offset": pixel_offset, **how}
        self._run("run_splat", shapes, None, locations, weights, None, None, {"output": output}, how)
        return output

    def _run(self, name, shapes, value, points, weights, references, padding, others, how):
        tensors = {"value": value, "points": points, "weights": weights, "references": references}
        tensors = {key: x for key, x in {**tensors, "padding_mask": padding, **others}.items() if x is not None}
        assert all(x.is_contiguous() for x in tensors.values())
        flat = (ctypes.c_int64 * (2 * len(shapes)))(*[size for shape in shapes for size in shape])
        call = Call(
            *points.shape[:3],
            1 if value is None else value.shape[-1],
            *points.shape[3:5],
            0 if references is None else references.shape[-1],
            ctypes.cast(flat, ctypes.c_void_p),
            str((points if value is None else value).dtype).removeprefix("torch.").encode(),
            **{key: x.data_ptr() for key, x in tensors.items()},
            **how,
        )
        run = getattr(self.library, name)
        run.restype = ctypes.c_char_p
        if error := run(ctypes.byref(call)):
            raise RuntimeError(error.decode())


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Compile the kernels for the host."""
    path = tmp_path_factory.mktemp("cuda_on_host") / "cuda_on_host.so"
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC"]
    sources = [f"-I{REPOSITORY / 'ops' / 'csrc'}", str(NATIVE / "cuda_on_host.cpp")]
    done = subprocess.run([*COMPILER, *flags, *sources, "-o", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Kernels(path)


def geometry_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_inputs(shapes, reference_dim, dtype, *, channels=8, padded=False, **sizes):
    """Return (value, points, weights, references, padding); references of 0 numbers are the plain form."""
    sizes = {"batch": 2, "heads": 2, **sizes}
    value = random_value(shapes, batch=sizes["batch"], heads=sizes["heads"], channels=channels)
    if reference_dim:
        references, points, weights = random_predictions(shapes, reference_dim, **sizes)
    else:
        references, (points, weights) = None, random_samples(shapes, **sizes)
    geometry = [None if x is None else x.to(geometry_dtype(dtype)) for x in (points, weights, references)]
    return value.to(dtype), *geometry, random_padding(shapes, batch=sizes["batch"]) if padded else None


def random_gradient(value, points, seed=9):
    size = (*points.shape[:2], value[0, 0].numel())
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(value.dtype)


def expected_results(shapes, value, points, weights, references, padding, grad_output):
    """Compute output and gradients by name, with plain loops in float64."""
    value, points, weights, grad_output = (x.double() for x in (value, points, weights, grad_output))
    value = value if padding is None else value.masked_fill(padding[..., None, None], 0)
    offsets = points
    if references is not None:
        references = references.double()
        points, weights = fuse(shapes, references, offsets, weights)
    output = attend(value, shapes, points, weights)
    gradients = attend_gradients(value, shapes, points, weights, grad_output)
    if padding is not None:
        gradients[0][padding] = 0
    if references is None:
        return output, dict(zip(GRADIENTS, gradients, strict=False))
    fused = fuse_gradients(shapes, references, offsets, weights, *gradients[1:])
    return output, {"value": gradients[0], **dict(zip(("references", "points", "weights"), fused, strict=True))}


def check_against_loops(kernels, shapes, inputs, *, need=GRADIENTS, **how):
    value, points, weights, references, padding = inputs
    grad_output = random_gradient(value, points)
    output, gradients = expected_results(shapes, *inputs, grad_output)
    assert relative_error(kernels.forward(value, shapes, *inputs[1:]), output) < TOLERANCES[value.dtype]
    results = kernels.backward(grad_output, value, shapes, *inputs[1:], need=need, **how)
    assert set(results) == set(need) & set(gradients)
    for name, result in results.items():
        tolerance = TOLERANCES[result.dtype] if name == "value" else 2 * TOLERANCES[result.dtype]
        assert relative_error(result, gradients[name]) < tolerance, name


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("reference_dim", [0, 2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_output_and_gradients_equal_plain_loops(kernels, dtype, reference_dim, deterministic):
    inputs = random_inputs(SHAPES, reference_dim, dtype, points=3, padded=reference_dim != 2)
    check_against_loops(kernels, SHAPES, inputs, deterministic=deterministic)


@pytest.mark.parametrize("channels", [1, 3, 5, 20, 32, 33, 136])
@pytest.mark.parametrize("vector_atomics", [False, True])
def test_any_number_of_channels_equals_plain_loops(kernels, channels, vector_atomics):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = random_inputs(SHAPES, 4, dtype, channels=channels, heads=3)
        check_against_loops(kernels, SHAPES, inputs, vector_atomics=vector_atomics)


@pytest.mark.parametrize(("levels", "points"), [(1, 1), (1, 3), (3, 4), (5, 4), (2, 9)])
def test_any_number_of_levels_and_points_equals_plain_loops(kernels, levels, points):
    shapes = FIVE_LEVELS[:levels]
    check_against_loops(kernels, shapes, random_inputs(shapes, 2, torch.float32, points=points))


def test_queries_of_several_blocks_equal_plain_loops(kernels):
    inputs = random_inputs(SHAPES, 2, torch.float32, queries=37, channels=32)
    check_against_loops(kernels, SHAPES, inputs, vector_atomics=True)


@pytest.mark.parametrize("need", [("value",), ("points", "weights"), ("references",), ("value", "references")])
@pytest.mark.parametrize("deterministic", [False, True])
def test_only_the_needed_gradients_are_computed(kernels, need, deterministic):
    check_against_loops(
        kernels, SHAPES, random_inputs(SHAPES, 4, torch.float32), need=need, deterministic=deterministic
    )


@pytest.mark.parametrize("reference_dim", [0, 4])
def test_the_order_of_threads_and_blocks_changes_no_bit(kernels, reference_dim):
    inputs = random_inputs(SHAPES, reference_dim, torch.float32, queries=20, channels=20)
    value, points = inputs[:2]
    grad_output = random_gradient(value, points)

    def run(reverse):
        output = kernels.forward(value, SHAPES, *inputs[1:], reverse=reverse)
        gradients = kernels.backward(grad_output, value, SHAPES, *inputs[1:], deterministic=True, reverse=reverse)
        return {"output": output, **gradients}

    forth, back = run(False), run(True)
    for name, result in forth.items():
        assert torch.equal(result, back[name]), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("reference_dim", [0, 2, 4])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_location_that_is_not_finite_reads_zero_and_has_no_gradient(kernels, bad, reference_dim, deterministic):
    value, points, weights, references, _ = random_inputs(SHAPES, reference_dim, torch.float32)
    grad_output = random_gradient(value, points)
    outside = points.clone()
    points[0, 1, 0, 1, 0, 0] = bad
    outside[0, 1, 0, 1, 0] = 1000  # far from all maps
    results = []
    for place in (points, outside):
        inputs = (value, SHAPES, place, weights, references)
        gradients = kernels.backward(grad_output, *inputs, deterministic=deterministic)
        results.append([kernels.forward(*inputs), *gradients.values()])
    for result, expected in zip(*results, strict=True):
        assert result.isfinite().all()
        assert_close(result, expected, rtol=0, atol=0)


def test_a_location_on_a_border_equals_plain_loops(kernels):
    shapes = ((3, 4),)
    pixels = torch.tensor([-0.75, -0.5, 0.0, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0], dtype=torch.float64)
    x, y = torch.meshgrid((pixels + 0.5) / 4, (pixels + 0.5) / 3, indexing="ij")
    points = torch.stack([x, y], -1).view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(points.shape[:-1], dtype=torch.float64)
    value = random_value(shapes, batch=1, heads=1, channels=4)
    check_against_loops(kernels, shapes, (value, points, weights, None, None))


def test_padded_tokens_may_hold_any_values(kernels):
    value, *samples, padding = random_inputs(SHAPES, 2, torch.float32, padded=True)
    grad_output = random_gradient(value, samples[0])

    def run(fill):
        filled = value.masked_fill(padding[..., None, None], fill)
        gradients = kernels.backward(grad_output, filled, SHAPES, *samples, padding)
        return {"output": kernels.forward(filled, SHAPES, *samples, padding), **gradients}

    zero, nan = run(0.0), run(math.nan)
    for name, result in zero.items():
        assert torch.equal(result, nan[name]), name
    assert not zero["value"][padding].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_infinite_gradient_makes_a_sum_in_fixed_point_nan(kernels, bad):
    inputs = random_inputs(SHAPES, 0, torch.float32)
    grad_output = random_gradient(*inputs[:2])
    grad_output[0, 0, 0] = bad
    result = kernels.backward(grad_output, inputs[0], SHAPES, *inputs[1:], need=["value"], deterministic=True)
    assert result["value"].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_makes_a_sum_in_fixed_point_nan(kernels, bad):
    value, points, weights, references, _ = random_inputs(SHAPES, 2, torch.float32)
    weights[0, 0, 0, 0] = bad
    references[0, 0, 0] = 0.5
    points[0, 0, 0, 0] = 0
    grad_output = random_gradient(value, points)
    inputs = (value, SHAPES, points, weights, references)
    assert kernels.backward(grad_output, *inputs, need=["value"], deterministic=True)["value"].isnan().all()


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1.0, 1e6, 1e30])
def test_sums_in_fixed_point_hold_gradients_of_any_size(kernels, size):
    inputs = random_inputs(SHAPES, 2, torch.float32)
    grad_output = random_gradient(*inputs[:2]) * size
    _, expected = expected_results(SHAPES, *inputs, grad_output)
    result = kernels.backward(grad_output, inputs[0], SHAPES, *inputs[1:], need=["value"], deterministic=True)
    assert relative_error(result["value"] / size, expected["value"] / size) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("index", [0, 1, 63, 96, 127, 128, 255, 256, 299])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_largest_number_is_found_wherever_it_is(kernels, index, reverse):
    numbers = torch.linspace(-1, 1, 300)
    for number in (-2.0, 2.0, math.inf, math.nan):
        numbers[index] = number
        found = kernels.library.largest_number(numbers.data_ptr(), len(numbers), reverse)
        assert found == abs(number) or math.isnan(found) and math.isnan(number)


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-20, 0.3, 1.0, 7.0, 3e38])
@pytest.mark.parametrize("terms", [1, 3, 2**31])
def test_the_scale_is_a_power_of_two_and_leaves_room_for_all_terms(kernels, is_double, largest, terms):
    scale = kernels.library.fixed_scale(largest, terms, is_double)
    assert math.frexp(scale)[0] == 0.5
    assert largest * terms * scale <= 2**62
    limit = 2.0**1000 if is_double else 2.0**126
    assert largest * terms * scale >= 2**61 or scale in (limit, 1 / limit)


@pytest.mark.parametrize("largest", [math.nan, math.inf])
def test_there_is_no_scale_for_what_is_not_finite(kernels, largest):
    assert kernels.library.fixed_scale(largest, 1, False) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pixel_offset", [-0.5, 0.0])
def test_splat_equals_plain_loops_in_any_order(kernels, dtype, pixel_offset):
    locations, weights = (x.to(dtype) for x in random_samples(SHAPES, queries=30))
    locations[0, 0, 0, 0, 0, 0] = math.nan
    locations[0, 0, 0, 1, 0, 1] = math.inf
    result = kernels.splat(SHAPES, locations, weights, pixel_offset)
    expected = splat(SHAPES, locations.double(), weights.double(), pixel_offset)
    assert relative_error(result, expected) < TOLERANCES[dtype]
    assert torch.equal(result, kernels.splat(SHAPES, locations, weights, pixel_offset, reverse=True))


def test_samples_that_do_not_fit_into_shared_memory_are_an_error(kernels):
    shapes = ((2, 2),)
    inputs = random_inputs(shapes, 0, torch.float32, batch=1, queries=1, heads=1, points=2000)
    with pytest.raises(RuntimeError, match="too many samples"):
        kernels.forward(inputs[0], shapes, *inputs[1:])
