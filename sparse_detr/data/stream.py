"""The order of the training data as a pure function of (seed, iteration).

Every process computes the same stream of joint batches and takes its share of each. So R processes get in iteration i
the same images as one process with the joint batch size, and a run resumes at any iteration without a saved state.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler

# The first number of the entropy of each random stream; all streams derive from the user's one seed.
PERMUTATION, SAMPLE, REPLACEMENT = range(3)


class StreamItem(NamedTuple):
    """One item of the stream: `position` is unique in the whole training, `index` is that of the image."""

    position: int
    index: int


def numpy_generator(*entropy: int) -> np.random.RandomState:
    """Return a separate generator for `entropy`; NumPy promises never to change its numbers."""
    return np.random.RandomState(np.random.SeedSequence(entropy).generate_state(8))


@contextmanager
def seeded_rng(*entropy: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global CPU generators from `entropy`; restore their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])  # torch.manual_seed would also reseed the GPUs, and with them dropout
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class BatchStream:
    """Endless joint batches: each epoch is one permutation of the images, sorted into one bucket a group.

    A full bucket is a batch, so that images of one group (wide or tall) come together and need little padding. The rest
    in a bucket at the end of an epoch stays for the next one: no image is dropped.

    Args:
        groups: the group of every image, numbered from 0; all equal for no grouping.
        batch_size: images of a joint batch, over all processes.
        seed: any integer from 0.
    """

    def __init__(self, *, groups: Sequence[int], batch_size: int, seed: int):
        self.groups = np.asarray(groups, dtype=np.int64)
        self.group_sizes = np.bincount(self.groups)
        self.batch_size = batch_size
        self.seed = seed

    def batches(self, start: int = 0) -> Iterator[list[StreamItem]]:
        """Yield joint batches from iteration `start` on; this costs a few epochs of indices for any `start`."""
        epoch = self._epoch_to_replay_from(start)
        buckets: list[list[int]] = [[-1] * left for left in epoch * self.group_sizes % self.batch_size]
        iteration = int((epoch * self.group_sizes // self.batch_size).sum())
        for index in self._indices(epoch):
            bucket = buckets[self.groups[index]]
            bucket.append(index)
            if len(bucket) == self.batch_size:
                if iteration >= start:
                    first = iteration * self.batch_size
                    yield [StreamItem(first + slot, item) for slot, item in enumerate(bucket)]
                iteration += 1
                bucket.clear()

    def _indices(self, epoch: int) -> Iterator[int]:
        for number in itertools.count(epoch):
            yield from numpy_generator(PERMUTATION, self.seed, number).permutation(len(self.groups)).tolist()

    def _epoch_to_replay_from(self, start: int) -> int:
        """Return an epoch so early that the buckets hold no placeholder at batch `start`.

        Before epoch e there are at most e * images / batch_size batches, so epoch start * batch_size // images begins
        at batch `start` or before. A bucket then holds at most batch_size - 1 images, from at most as many epochs.
        """
        lookback = -(-(self.batch_size - 1) // self.group_sizes[self.group_sizes > 0].min())
        return max(0, start * self.batch_size // len(self.groups) - int(lookback))


class StreamSampler(Sampler[StreamItem]):
    """A sampler for the share of one process in a `BatchStream`: the same slice of every joint batch."""

    def __init__(self, *, stream: BatchStream, rank: int = 0, world_size: int = 1):
        self.stream = stream
        share = stream.batch_size // world_size
        self.slice = slice(rank * share, (rank + 1) * share)
        self.start_iteration = 0

    def __iter__(self) -> Iterator[StreamItem]:
        for batch in self.stream.batches(self.start_iteration):
            yield from batch[self.slice]
