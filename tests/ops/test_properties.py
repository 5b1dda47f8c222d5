"""Properties of the op for any sizes and numbers, for every backend."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from sparse_detr.ops import fused_deformable_attention, multi_scale_deformable_attention, splat_attention
from tests.ops.backends import CPU_BACKENDS
from tests.ops.reference import attend, random_predictions, random_samples, random_value

settings.register_profile("ops", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("ops")

SHAPES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3)
SIZES = st.fixed_dictionaries(
    {"batch": st.integers(1, 3), "queries": st.integers(1, 9), "heads": st.integers(1, 4), "points": st.integers(1, 5)}
)


class Case:
    """Random inputs of random sizes for a backend."""

    def __init__(self, shapes, sizes, channels, seed, backend):
        self.shapes, self.backend, self.seed = tuple(shapes), backend, seed
        self.sizes, self.channels = sizes, channels
        self.locations, self.weights = random_samples(self.shapes, **sizes, seed=seed)
        self.value = self.another_value(seed + 1)

    def another_value(self, seed):
        sizes = {name: self.sizes[name] for name in ("batch", "heads")}
        return random_value(self.shapes, **sizes, channels=self.channels, seed=seed)

    def run(self, **changed):
        tensors = {name: changed.get(name, getattr(self, name)) for name in ("value", "locations", "weights")}
        value, locations, weights = tensors.values()
        return multi_scale_deformable_attention(value, self.shapes, locations, weights, backend=self.backend)


CASES = st.builds(Case, SHAPES, SIZES, st.integers(1, 20), st.integers(0, 2**20), st.sampled_from(CPU_BACKENDS))


@given(CASES)
def test_the_op_equals_plain_loops(case):
    assert_close(case.run(), attend(case.value, case.shapes, case.locations, case.weights), atol=1e-11, rtol=0)


@given(CASES, st.floats(-3, 3))
def test_the_op_is_linear_in_the_value(case, factor):
    other = case.another_value(case.seed + 2)
    combined = case.run(value=case.value + factor * other)
    assert_close(combined, case.run() + factor * case.run(value=other), atol=1e-11, rtol=0)


@given(CASES, st.floats(-3, 3))
def test_the_op_is_linear_in_the_weights(case, factor):
    other = torch.randn_like(case.weights)
    combined = case.run(weights=case.weights + factor * other)
    assert_close(combined, case.run() + factor * case.run(weights=other), atol=1e-11, rtol=0)


@given(CASES)
def test_permuting_queries_permutes_the_output(case):
    order = torch.randperm(case.sizes["queries"])
    permuted = case.run(locations=case.locations[:, order], weights=case.weights[:, order])
    assert torch.equal(permuted, case.run()[:, order])


@given(CASES)
def test_permuting_images_permutes_the_output_and_the_map(case):
    order = torch.randperm(case.sizes["batch"])
    locations, weights = case.locations[order], case.weights[order]
    permuted = case.run(value=case.value[order], locations=locations, weights=weights)
    assert torch.equal(permuted, case.run()[order])
    received = splat_attention(case.shapes, case.locations, case.weights, backend=case.backend)
    permuted = splat_attention(case.shapes, locations, weights, backend=case.backend)
    assert_close(permuted, received[order], atol=1e-12, rtol=0)


@given(CASES, st.floats(-5, 5))
def test_a_constant_map_reads_as_the_constant_within_the_borders(case, constant):
    # At least half a pixel of the level away from every border.
    half = torch.tensor([[0.5 / width, 0.5 / height] for height, width in case.shapes], dtype=torch.float64)
    inside = half[:, None] + torch.rand_like(case.locations) * (1 - 2 * half[:, None])
    result = case.run(value=torch.full_like(case.value, constant), locations=inside)
    assert_close(result, torch.full_like(result, constant), atol=1e-11, rtol=0)


@given(CASES)
def test_the_sum_of_the_map_is_what_the_op_reads_of_a_map_of_ones(case):
    received = splat_attention(case.shapes, case.locations, case.weights, backend=case.backend)
    read = case.run(value=torch.ones_like(case.value)).sum((1, 2)) / case.channels
    assert_close(received.sum(1), read, atol=1e-11, rtol=0)


@given(SHAPES, SIZES, st.sampled_from([2, 4]), st.integers(0, 2**20), st.floats(-30, 30), st.sampled_from(CPU_BACKENDS))
def test_adding_a_constant_to_all_logits_changes_nothing(shapes, sizes, size, seed, constant, backend):
    references, offsets, logits = random_predictions(shapes, size, **sizes, seed=seed)
    value = random_value(shapes, batch=sizes["batch"], heads=sizes["heads"], seed=seed)
    first, second = (
        fused_deformable_attention(value, shapes, references, offsets, x, backend=backend)
        for x in (logits, logits + constant)
    )
    assert_close(first, second, atol=1e-11, rtol=0)
