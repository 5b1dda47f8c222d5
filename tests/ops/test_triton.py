"""The Triton kernels against the formula in float64: in the interpreter of Triton, and on a GPU if there is one.

The interpreter accepts types and operations that a GPU does not have, so the kernels are also compiled for GPUs, which
needs no GPU. Interpreter and compiler run in separate processes, because the import of Triton decides between them.
"""

import importlib.util
import multiprocessing
import os
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops.backends import OLDEST_TRITON_GPU
from tests.ops.reference import attend, random_samples, splat

# Not imported here: a process must first choose between interpreter and compiler.
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

SHAPES = ((4, 6), (2, 3))
NEEDED = {"need_value": True, "need_samples": True, "need_reference": True, "deterministic": False}


# ---------------------------------------------------------------------------------------------------- running kernels


def start_process(interpret, cache):
    os.environ["TRITON_INTERPRET"] = "1" if interpret else "0"
    os.environ["TRITON_CACHE_DIR"] = cache
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # infinities, in numpy


def answer(function, arguments):
    args, kwargs = pickle.loads(arguments)
    return pickle.dumps(function(*args, **kwargs))


def call_kernels(name, *args, **kwargs):
    from sparse_detr.ops import triton_backend

    return getattr(triton_backend, name)(*args, **kwargs)


def run_self_check(broken):
    """Return the result of the self-check for the kernels, or for kernels that swap rows and columns."""
    from sparse_detr.ops import self_check, triton_backend
    from sparse_detr.ops.backends import find_backend

    assert find_backend("triton").unavailable is None
    rows = triton_backend._level_rows
    with pytest.MonkeyPatch.context() as patch:
        triton_backend._cached_level_table.cache_clear()
        if broken:
            patch.setattr(triton_backend, "_level_rows", lambda sizes: [(w, h, start) for h, w, start in rows(sizes)])
        return self_check._run("sparse_detr_triton", torch.device("cpu"), torch.float32)


class Process:
    """Runs functions in a fresh process."""

    def __init__(self, *, interpret, cache):
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context, start_process, (interpret, str(cache)))

    def __call__(self, function, *args, **kwargs):
        return pickle.loads(self.pool.submit(answer, function, pickle.dumps((args, kwargs))).result())


def call_kernels_on_gpu(name, *args, **kwargs):
    results = call_kernels(name, *(x.cuda() if isinstance(x, torch.Tensor) else x for x in args), **kwargs)
    return results.cpu() if isinstance(results, torch.Tensor) else tuple(x.cpu() for x in results)


@pytest.fixture(scope="module")
def interpreting_process(tmp_path_factory):
    process = Process(interpret=True, cache=tmp_path_factory.mktemp("interpreter"))
    yield process
    process.pool.shutdown()


@pytest.fixture(scope="module")
def interpreter(interpreting_process):
    return lambda *args, **kwargs: interpreting_process(call_kernels, *args, **kwargs)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    process = Process(interpret=False, cache=tmp_path_factory.mktemp("compiler"))
    yield lambda *args: process(compile_kernel, *args)
    process.pool.shutdown()


@pytest.fixture(
    params=[
        "interpreter",
        pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
    ]
)
def kernels(request):
    """Give a function that calls a function of the backend by its name."""
    return request.getfixturevalue("interpreter") if request.param == "interpreter" else call_kernels_on_gpu


# ------------------------------------------------------------------------------------------ the formula, in PyTorch


def formula(value, points, weights, reference_points, padding_mask, shapes):
    """Return (B, Q, M * D), by simple gathering; differentiable by every floating-point argument."""
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[..., None, None], 0)
    if reference_points is not None:
        weights = weights.flatten(-2).softmax(-1).view_as(weights)
    image = torch.arange(value.shape[0])[:, None, None, None]
    head = torch.arange(value.shape[2])[None, None, :, None]
    output, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        size = points.new_tensor([width, height])
        location = points[:, :, :, level]
        if reference_points is not None:
            reference = reference_points[:, :, None, level, None]
            extent = reference[..., 2:] * (0.5 / points.shape[4]) if reference.shape[-1] == 4 else 1 / size
            location = reference[..., :2] + location * extent
        pixel = location * size - 0.5
        near = ((pixel > -1) & (pixel < size)).all(-1)
        pixel = torch.where(near[..., None], pixel, 0)
        corner = pixel.detach().floor()
        right, down = (pixel - corner).unbind(-1)
        column, row = corner.long().unbind(-1)
        for x, y, share in (
            (column, row, (1 - right) * (1 - down)),
            (column + 1, row, right * (1 - down)),
            (column, row + 1, (1 - right) * down),
            (column + 1, row + 1, right * down),
        ):
            inside = near & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            cell = torch.where(inside, start + y * width + x, 0)
            read = value[image, cell, head] * (inside * share * weights[:, :, :, level])[..., None]
            output = output + read.sum(3)
        start += height * width
    return output.flatten(2)


def case(
    *,
    coordinates=0,
    shapes=SHAPES,
    batch=1,
    queries=3,
    heads=1,
    points=2,
    channels=5,
    padding=False,
    dtype=torch.float32,
):
    """Make random arguments of the op, in the order of its schema; some samples lie outside."""
    generator = torch.Generator().manual_seed(channels + queries)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    levels, tokens = len(shapes), sum(h * w for h, w in shapes)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def uniform(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    value = normal(batch, tokens, heads, channels).to(dtype)
    weights = normal(batch, queries, heads, levels, points).to(real)
    if coordinates:
        samples = 2 * normal(batch, queries, heads, levels, points, 2)
    else:
        samples = uniform(batch, queries, heads, levels, points, 2) * 1.6 - 0.3
    reference = uniform(batch, queries, levels, coordinates).to(real) if coordinates else None
    mask = uniform(batch, tokens) < 0.3 if padding else None
    return value, samples.to(real), weights, reference, mask, [size for shape in shapes for size in shape]


def expected(arguments, grad_output=None):
    """Return output and gradients of the formula in float64; gradients of missing arguments are empty."""
    *tensors, mask, sizes = arguments
    inputs = [None if x is None else x.double().requires_grad_() for x in tensors]
    output = formula(*inputs, mask, list(zip(sizes[::2], sizes[1::2])))
    if grad_output is None:
        return output.detach(), None
    there = [x for x in inputs if x is not None]
    # Autograd multiplies the zero gradient of a sample that is not finite by its location.
    gradients = [x.nan_to_num(0.0) for x in torch.autograd.grad(output, there, grad_output.double())]
    return output.detach(), gradients + [torch.zeros(0, dtype=torch.float64)] * (4 - len(there))


def check(kernels, arguments, *, tolerance=1e-5, **options):
    """Check forward and backward against the formula, within `tolerance` of the largest number of each result."""
    value, points = arguments[:2]
    grad_output = torch.randn(
        *points.shape[:2], value.shape[2] * value.shape[3], generator=torch.Generator().manual_seed(9)
    )
    grad_output = grad_output.to(value.dtype)
    output, gradients = expected(arguments, grad_output)
    results = [kernels("deformable_attention", *arguments)]
    results += kernels("deformable_attention_backward", grad_output, *arguments, **{**NEEDED, **options})
    dtypes = [value.dtype, value.dtype, points.dtype, points.dtype, points.dtype]
    for name, result, wanted, dtype in zip(
        ("output", "value", "points", "weights", "reference_points"), results, [output, *gradients], dtypes
    ):
        assert result.dtype == dtype, name
        largest = wanted.abs().max() if wanted.numel() else 0
        assert_close(
            result.double(), wanted, rtol=0, atol=float(tolerance * largest), msg=lambda text, n=name: f"{n}: {text}"
        )


def test_the_formula_here_equals_plain_loops():
    locations, weights = random_samples(SHAPES)
    value, *_ = case(batch=2, heads=2, dtype=torch.float64)
    assert_close(formula(value, locations, weights, None, None, SHAPES), attend(value, SHAPES, locations, weights))


def test_the_self_check_passes_the_kernels_and_finds_broken_ones(interpreting_process):
    assert interpreting_process(run_self_check, broken=True).startswith("the output is off by")
    assert interpreting_process(run_self_check, broken=False) is None


# ------------------------------------------------------------------------------------------------- wrong arguments

TOO_MANY = "fewer than 268435456 tokens"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spatial_shapes": [2**32, 2**32, 2, 3]}, TOO_MANY),
        ({"spatial_shapes": [2**14, 2**14, 2, 3]}, TOO_MANY),
        ({"spatial_shapes": [4, 6, 2]}, "spatial_shapes must be h, w of every level"),
        ({"spatial_shapes": [4, 6]}, "points has 2 levels, spatial_shapes has 1"),
        ({"spatial_shapes": [4, 6, 2, 4]}, "value has 30 tokens, but .* add up to 32"),
        ({"spatial_shapes": [-4, -6, 2, 3]}, "at least 1"),
        ({"points": torch.rand(1, 3, 1, 2, 2, 2).double()}, "points and weights must be float32 or float64"),
        ({"weights": torch.rand(1, 3, 1, 2, 1)}, "weights must have the shape"),
        ({"value": torch.rand(1, 30, 1, 5).double()}, "points must be torch.float64"),
        ({"mask": torch.zeros(1, 30)}, "padding_mask must be bool"),
        ({"grad_output": torch.rand(1, 3, 4)}, "grad_output must be"),
    ],
)
def test_a_direct_call_of_the_operators_with_wrong_arguments_is_an_error(interpreter, changed, message):
    names = ("value", "points", "weights", "reference_points", "mask", "spatial_shapes")
    given = {**dict(zip(names, case())), "grad_output": torch.rand(1, 3, 5), **changed}
    arguments = [given[name] for name in names]
    with pytest.raises(ValueError, match=message):
        interpreter("deformable_attention_backward", given["grad_output"], *arguments, **NEEDED)
    if "grad_output" not in changed:
        with pytest.raises(ValueError, match=message):
            interpreter("deformable_attention", *arguments)


@pytest.mark.parametrize("sizes", [[2**32, 2**32, 2, 3], [2**14, 2**14, 2, 3], [2**62, 4, 2, 3]])
def test_a_map_of_too_many_tokens_is_refused(interpreter, sizes):
    _, points, weights, *_ = case()
    with pytest.raises(ValueError, match=TOO_MANY):
        interpreter("splat_attention", points, weights, sizes, -0.5)


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("coordinates", "padding"),
    [(0, False), (0, True), (2, True), (4, True)],
    ids=["locations", "padded locations", "padded points", "padded boxes"],
)
def test_the_kernels_equal_the_formula(kernels, coordinates, padding):
    check(kernels, case(coordinates=coordinates, padding=padding, batch=2, heads=2, points=3))


@pytest.mark.parametrize(
    "sizes",
    [
        dict(shapes=((3, 5),), points=1, channels=1),
        dict(shapes=((3, 5), (2, 2), (1, 1)), points=5, channels=8),  # of 5 points, 4 are unrolled and one remains
        dict(queries=35, channels=17),  # several programs for the queries of one head
        dict(channels=64),
    ],
    ids=["one level one point", "15 samples", "35 queries", "64 channels"],
)
def test_the_kernels_equal_the_formula_at_any_size(kernels, sizes):
    check(kernels, case(coordinates=4, **sizes))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Half of the last bit of the largest number; a whole bit in bfloat16, which the interpreter truncates.
    [(torch.float64, 1e-12), (torch.bfloat16, 2**-7), (torch.float16, 2**-11)],
)
@pytest.mark.parametrize("coordinates", [0, 4], ids=["locations", "boxes"])
def test_every_dtype_is_as_exact_as_its_last_rounding(kernels, dtype, tolerance, coordinates):
    check(kernels, case(coordinates=coordinates, dtype=dtype), tolerance=tolerance)


def test_non_contiguous_arguments_give_the_same(kernels):
    *tensors, sizes = case(coordinates=2, padding=True, batch=2, heads=2)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors]
    assert not any(x.is_contiguous() for x in strided)
    check(kernels, (*strided, sizes))


@pytest.mark.parametrize("place", [torch.nan, torch.inf, -40.0, 1e30])
def test_a_sample_that_is_outside_or_not_finite_reads_zero_and_has_gradient_zero(kernels, place):
    value, points, weights, *rest = case()
    points[0, 0, 0, :, :, 0] = place
    points[0, 1, 0, 0, 1, 1] = place
    check(kernels, (value, points, weights, *rest))
    gone = ~((points.abs() < 2).all(-1))
    grad_output = torch.ones(1, 3, 5)
    _, grad_points, grad_weights, _ = kernels(
        "deformable_attention_backward", grad_output, value, points, weights, *rest, **NEEDED
    )
    assert gone.sum() == 5
    assert not grad_points[gone].any()
    assert not grad_weights[gone].any()


@pytest.mark.parametrize("place", [torch.nan, torch.inf])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_an_offset_or_reference_that_is_not_finite_affects_only_what_uses_it(kernels, place, coordinates):
    value, points, weights, reference, *rest = case(coordinates=coordinates)
    points[0, 0, 0, 0, 0, 0] = place
    reference[0, 1, 1, coordinates - 1] = place
    arguments = value, points, weights, reference, *rest
    check(kernels, arguments)
    gradients = kernels("deformable_attention_backward", torch.ones(1, 3, 5), *arguments, **NEEDED)
    assert all(x.isfinite().all() for x in gradients)


def test_samples_on_borders_and_pixel_edges_equal_the_formula(kernels):
    value, points, weights, reference, mask, _ = case(queries=25, points=1, shapes=((2, 4),))
    x, y = torch.meshgrid(
        torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0]), torch.tensor([0, 0.25, 0.5, 0.75, 1]), indexing="ij"
    )
    points = torch.stack([x, y], -1).view(1, 25, 1, 1, 1, 2)
    check(kernels, (value, points, weights, reference, mask, [2, 4]))


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=["no image", "no query"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_empty_arguments_give_empty_results_and_zero_gradients(kernels, sizes, deterministic):
    arguments = case(coordinates=2, **sizes)
    output = kernels("deformable_attention", *arguments)
    options = NEEDED | dict(deterministic=deterministic)
    gradients = kernels("deformable_attention_backward", output, *arguments, **options)
    assert output.shape == (*arguments[1].shape[:2], 5)
    assert [x.shape for x in gradients] == [x.shape for x in arguments[:4]]
    assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("needed", ["need_value", "need_samples", "need_reference"])
def test_only_the_gradients_that_are_needed_are_computed(kernels, needed):
    arguments = case(coordinates=4)
    grad_output = torch.ones(1, 3, 5)
    _, (value, points, weights, reference) = expected(arguments, grad_output)
    wanted = {"need_value": {0: value}, "need_samples": {1: points, 2: weights}, "need_reference": {3: reference}}[
        needed
    ]
    options = dict.fromkeys(NEEDED, False) | {needed: True}
    for index, gradient in enumerate(kernels("deformable_attention_backward", grad_output, *arguments, **options)):
        if index in wanted:
            assert_close(gradient.double(), wanted[index], rtol=1e-4, atol=1e-4)
        else:
            assert gradient.shape == (0,)


# ---------------------------------------------------------------------------------------------------------- fixed point


@pytest.mark.parametrize("coordinates", [0, 2], ids=["locations", "points"])
def test_deterministic_gradients_of_the_value_do_not_depend_on_the_order_of_queries(kernels, coordinates):
    value, points, weights, reference, *rest = case(coordinates=coordinates, queries=35)
    grad_output = torch.randn(1, 35, 5, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    options = dict.fromkeys(NEEDED, False) | dict(need_value=True, deterministic=True)

    def gradient(q):
        permuted = [points[:, q], weights[:, q], None if reference is None else reference[:, q]]
        return kernels("deformable_attention_backward", grad_output[:, q], value, *permuted, *rest, **options)[0]

    assert torch.equal(gradient(order), gradient(torch.arange(35)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_deterministic_gradients_equal_the_formula(kernels, dtype):
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-7}[dtype]
    check(kernels, case(coordinates=4, padding=True, dtype=dtype), tolerance=tolerance, deterministic=True)


@pytest.mark.parametrize("factor", [1e-30, 1e30, 0.0])
def test_fixed_point_adapts_to_the_size_of_the_gradient(kernels, factor):
    arguments = case()
    grad_output = torch.full((1, 3, 5), factor)
    _, (wanted, *_) = expected(arguments, grad_output)
    options = dict.fromkeys(NEEDED, False) | dict(need_value=True, deterministic=True)
    result = kernels("deformable_attention_backward", grad_output, *arguments, **options)[0]
    assert_close(result.double(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_fixed_point_holds_a_large_gradient_and_a_large_weight_of_different_samples(kernels):
    value, points, weights, *rest = case(padding=False)
    grad_output = torch.ones(1, 3, 5)
    grad_output[0, 0], weights[0, 1] = 1e25, 1e15
    options = dict.fromkeys(NEEDED, False) | dict(need_value=True, deterministic=True)
    result = kernels("deformable_attention_backward", grad_output, value, points, weights, *rest, **options)[0]
    _, (wanted, *_) = expected((value, points, weights, *rest), grad_output)
    assert_close(result.double(), wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))  # of 62 bits, 50 are for 1e15


@pytest.mark.parametrize("spoiled", ["gradient", "weight", "logit"])
def test_fixed_point_gives_nan_for_infinity(kernels, spoiled):
    value, points, weights, *rest = case(coordinates=2 if spoiled == "logit" else 0)
    grad_output = torch.ones(1, 3, 5)
    (grad_output if spoiled == "gradient" else weights).view(-1)[0] = torch.inf
    options = dict.fromkeys(NEEDED, False) | dict(need_value=True, deterministic=True)
    result = kernels("deformable_attention_backward", grad_output, value, points, weights, *rest, **options)[0]
    assert result.isnan().all()


# ---------------------------------------------------------------------------------------------------------------- splat


@pytest.mark.parametrize("pixel_offset", [-0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_splat_equals_plain_loops(kernels, pixel_offset, dtype):
    locations, weights = random_samples(SHAPES, queries=20, points=3)
    wanted = splat(SHAPES, locations.to(dtype).double(), weights.to(dtype).double(), pixel_offset)
    received = kernels("splat_attention", locations.to(dtype), weights.to(dtype), [4, 6, 2, 3], pixel_offset)
    assert received.dtype == dtype
    assert_close(received.double(), wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_the_splat_does_not_depend_on_the_order_of_queries_and_drops_what_is_not_finite(kernels):
    locations, weights = (x.float() for x in random_samples(SHAPES, queries=20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    weights[:, 0] *= -3
    first = kernels("splat_attention", locations, weights, [4, 6, 2, 3], -0.5)
    assert torch.equal(kernels("splat_attention", locations[:, order], weights[:, order], [4, 6, 2, 3], -0.5), first)
    for place in (torch.nan, torch.inf, 50):
        locations[...] = place
        assert not kernels("splat_attention", locations, weights, [4, 6, 2, 3], -0.5).any()


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0)], ids=["no image", "no query"])
def test_no_samples_give_a_map_of_zeros(kernels, sizes):
    locations, weights = random_samples(SHAPES, **sizes)
    received = kernels("splat_attention", locations, weights, [4, 6, 2, 3], -0.5)
    assert received.shape == (sizes.get("batch", 2), 30)
    assert not received.any()


# ---------------------------------------------------------------------------------------------------------- CUDA graphs


@pytest.mark.parametrize("function", ["_level_table", "_written_level_table"])
def test_the_table_of_levels_is_the_same_within_a_cuda_graph(interpreter, function):
    table = interpreter(function, [4, 6, 2, 3], torch.device("cpu"))
    assert table.dtype == torch.int32
    assert table.tolist() == [[4, 6, 0], [2, 3, 24]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cuda_graph_replays_with_new_numbers():
    from sparse_detr.ops import triton_backend

    value, *rest = (x.cuda() if isinstance(x, torch.Tensor) else x for x in case(queries=7))
    triton_backend.deformable_attention(value, *rest)  # compilation cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = triton_backend.deformable_attention(value, *rest)
    value.normal_()
    graph.replay()
    assert_close(output, triton_backend.deformable_attention(value, *rest))


# ------------------------------------------------------------------------------------------------------ ahead of time

KINDS = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def compile_kernel(name, architecture, dtype, coordinates, fixed_point, tokens=64):
    """Compile a kernel for heads of 32 channels, 4 levels and 2 points; return PTX that ptxas has accepted."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparse_detr.ops import triton_backend

    kernel = getattr(triton_backend, name)
    meta = lambda *size: torch.empty(size, dtype=dtype, device="meta")  # noqa: E731
    real = torch.float64 if dtype == torch.float64 else torch.float32
    reference = meta(1, 8, 4, coordinates) if coordinates else None
    element_size = real.itemsize if name == "_backward_kernel" else dtype.itemsize
    options = triton_backend._options(
        meta(1, tokens, 8, 32), meta(1, 8, 8, 4, 2, 2), reference, element_size=element_size
    )
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages")}
    constants = {**options, "BLOCK": triton_backend.SPLAT_BLOCK}
    if not coordinates:
        constants |= dict(reference_points=None, padding_mask=None, grad_reference=None)
    if not fixed_point and name == "_backward_kernel":
        constants |= dict(fixed_point_scale=None)
    types = dict.fromkeys(("output", "value", "grad_output"), KINDS[dtype])
    types |= dict(padding_mask="u8", levels="i32", received="i64", grad_value="i64" if fixed_point else KINDS[real])
    scalars = {
        "num_images": "i32",
        "num_queries": "i32",
        "num_tokens": "i32",
        "num_samples": "i32",
        "pixel_offset": "fp32",
    }
    arguments = [argument for argument in kernel.arg_names if argument not in constants]
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    signature |= {x: scalars[x] if x in scalars else "*" + types.get(x, KINDS[real]) for x in arguments}
    aligned = {(i,): [["tt.divisibility", 16]] for i, x in enumerate(kernel.arg_names) if signature[x].startswith("*")}
    constants = {x: constants[x] for x in kernel.arg_names if x in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch).asm["ptx"]


@pytest.mark.parametrize(
    ("architecture", "dtype", "coordinates"),
    [(80, torch.bfloat16, 0), (90, torch.float32, 4)],
)
def test_forward_reads_16_bytes_at_a_time(compiler, architecture, dtype, coordinates):
    ptx = compiler("_forward_kernel", architecture, dtype, coordinates, False)
    assert f"sm_{architecture}" in ptx
    assert ptx.count("ld.global.v4.b32") >= 8  # 2 points unrolled, 4 corners


def test_the_kernels_compile_for_a_value_that_needs_64_bit_addresses(compiler):
    assert "ld.global.v4.b32" in compiler("_forward_kernel", 90, torch.bfloat16, 2, False, 2**24)


@pytest.mark.parametrize(("dtype", "coordinates"), [(torch.float32, 4), (torch.bfloat16, 0)])
def test_backward_adds_four_floats_at_a_time_on_hopper(compiler, dtype, coordinates):
    ptx = compiler("_backward_kernel", 90, dtype, coordinates, False)
    assert ptx.count("relaxed.add.v4.f32") == 8


def test_backward_adds_single_floats_before_hopper(compiler):
    ptx = compiler("_backward_kernel", 80, torch.float32, 2, False)
    assert ptx.count("relaxed.add.f32") >= 8
    assert ".v4.f32" not in ptx


@pytest.mark.parametrize("name", ["_forward_kernel", "_backward_kernel", "_splat_kernel"])
def test_the_kernels_compile_for_the_oldest_gpu_of_the_backend(compiler, name):
    major, minor = OLDEST_TRITON_GPU
    assert f"sm_{major}{minor}" in compiler(name, 10 * major + minor, torch.float32, 0, name != "_forward_kernel")


@pytest.mark.parametrize(
    ("name", "architecture", "dtype"),
    [
        ("_backward_kernel", 90, torch.float32),
        ("_splat_kernel", 80, torch.float32),
        ("_splat_kernel", 90, torch.float64),
    ],
)
def test_fixed_point_adds_integers(compiler, name, architecture, dtype):
    assert "relaxed.add.u64" in compiler(name, architecture, dtype, 0, True)
