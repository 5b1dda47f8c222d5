"""Results do not depend on the number of threads; in PyTorch's deterministic mode, all runs on a GPU agree too.

Calls are repeated, also from several threads at once, so that a race shows.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparse_detr.ops import fused_deformable_attention, locate_samples, splat_attention
from tests.ops.reference import random_padding, random_predictions, random_value

SHAPES = ((24, 31), (12, 16), (6, 8))


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def everything(kernel, dtype, queries, channels):
    """Return the output, all gradients and the map."""
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, 4, queries=queries, heads=4))
    value = random_value(SHAPES, heads=4, channels=channels).to(dtype)
    leaves = [x.requires_grad_() for x in (value, references, offsets, logits)]
    output = fused_deformable_attention(
        value, SHAPES, references, offsets, logits, padding_mask=random_padding(SHAPES), backend=kernel
    )
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    with torch.no_grad():
        received = splat_attention(SHAPES, *locate_samples(references, offsets, logits, SHAPES), backend=kernel)
    return output, received, *gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 50, 1500])  # one, few, and more queries than tokens
@pytest.mark.parametrize("channels", [20, 32])  # half a vector remains (AVX-512), and none
def test_any_number_of_threads_gives_the_same_bits(cpu_kernel, dtype, queries, channels):
    if cpu_kernel == "triton":
        pytest.skip("the interpreter has one thread")
    torch.set_num_threads(1)
    expected = everything(cpu_kernel, dtype, queries, channels)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        results = everything(cpu_kernel, dtype, queries, channels)
        assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))


def test_the_deterministic_mode_of_torch_gives_the_same_bits_in_every_run(kernel):
    torch.use_deterministic_algorithms(True)
    try:
        expected = everything(kernel, torch.float32, 1500, 32)
        for _ in range(3):
            results = everything(kernel, torch.float32, 1500, 32)
            assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [50, 1500])
def test_repeated_calls_give_the_same_bits(kernel, dtype, queries):
    """On a GPU the output and the map; gradients of the value are sums in any order there."""
    runs = 2 if kernel == "triton" and not torch.cuda.is_available() else 20  # the interpreter is slow
    expected = everything(kernel, dtype, queries, 32)
    counted = len(expected) if not expected[0].is_cuda else 2
    for _ in range(runs):
        results = everything(kernel, dtype, queries, 32)
        assert all(torch.equal(x, y) for x, y in zip(results[:counted], expected[:counted], strict=True))


def test_calls_from_several_threads_at_once_give_the_same_bits(cpu_kernel):
    """Each thread with inputs of another size, so that a buffer that two of them share would show."""
    if cpu_kernel == "triton":
        pytest.skip("the interpreter replaces functions of its language while a kernel runs: one thread only")
    torch.set_num_threads(2)
    sizes = [1, 50, 300, 1500]
    expected = [everything(cpu_kernel, torch.float32, queries, 32) for queries in sizes]
    with ThreadPoolExecutor(len(sizes)) as pool:
        for _ in range(5):
            results = list(pool.map(lambda queries: everything(cpu_kernel, torch.float32, queries, 32), sizes))
            for result, truth in zip(results, expected, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(result, truth, strict=True))
