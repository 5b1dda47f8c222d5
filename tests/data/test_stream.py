import random
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_detr.data.stream import BatchStream, StreamSampler, numpy_generator, seeded_rng


def first_batches(stream, count, start=0):
    return list(islice(stream.batches(start), count))


def test_every_image_comes_once_before_any_comes_twice():
    stream = BatchStream(groups=[0] * 6, batch_size=2, seed=0)

    epochs = [[item.index for batch in first_batches(stream, 3, start) for item in batch] for start in (0, 3)]

    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]


def test_a_batch_holds_one_group_and_no_image_is_lost():
    groups = [0, 1, 0, 1, 1, 0, 1]
    stream = BatchStream(groups=groups, batch_size=2, seed=3)

    batches = first_batches(stream, 70)

    assert all(len({groups[item.index] for item in batch}) == 1 for batch in batches)
    counts = np.bincount([item.index for batch in batches for item in batch])
    assert counts.min() >= 19
    assert counts.max() <= 21


def test_positions_count_the_items_of_the_whole_training():
    stream = BatchStream(groups=[0, 1, 1], batch_size=2, seed=0)

    positions = [item.position for batch in first_batches(stream, 20) for item in batch]

    assert positions == list(range(40))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 1), min_size=1, max_size=9),
    batch_size=st.integers(1, 12),
    start=st.integers(0, 60),
    seed=st.integers(0, 2**31),
)
def test_starting_at_any_iteration_equals_the_tail_of_the_stream(groups, batch_size, start, seed):
    stream = BatchStream(groups=groups, batch_size=batch_size, seed=seed)

    assert first_batches(stream, 4, start) == first_batches(stream, start + 4)[start:]


def test_a_late_start_costs_a_few_epochs_only():
    stream = BatchStream(groups=[0, 1] * 50, batch_size=16, seed=0)

    assert first_batches(stream, 1, 10**9)[0][0].position == 16 * 10**9


def test_another_seed_gives_another_order():
    streams = [BatchStream(groups=[0] * 20, batch_size=4, seed=seed) for seed in (0, 1)]

    assert first_batches(streams[0], 5) != first_batches(streams[1], 5)


def test_the_shares_of_the_processes_make_up_the_joint_batch():
    stream = BatchStream(groups=[0, 1, 0, 1, 0], batch_size=4, seed=0)
    shares = [list(islice(StreamSampler(stream=stream, rank=rank, world_size=2), 20)) for rank in (0, 1)]

    joined = [shares[0][i : i + 2] + shares[1][i : i + 2] for i in range(0, 20, 2)]

    assert joined == first_batches(stream, 10)


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seeded_random_numbers_depend_on_the_seed_only_and_the_global_generators_are_restored():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    expected_after = draw()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)

    with seeded_rng(1, 2):
        first = draw()
    after = draw()
    with seeded_rng(1, 2):
        again = draw()
    with seeded_rng(1, 3):
        other = draw()

    assert after == expected_after
    assert first == again
    assert not set(first) & set(other)


def test_the_global_generators_are_restored_after_an_error():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)

    with pytest.raises(KeyError), seeded_rng(0):
        raise KeyError

    assert torch.rand(()) == expected


def test_the_order_is_the_same_on_every_machine():
    assert numpy_generator(0, 0, 0).permutation(8).tolist() == [3, 4, 6, 0, 1, 2, 7, 5]
