"""Multi-scale deformable attention and its map, written from the formula with plain loops."""

import itertools
import math

import torch


def corners(x, y):
    """The four cells (row, column) around pixel coordinate (x, y), and their bilinear shares."""
    column, row = math.floor(x), math.floor(y)
    right, down = x - column, y - row
    yield row, column, (1 - right) * (1 - down)
    yield row, column + 1, right * (1 - down)
    yield row + 1, column, (1 - right) * down
    yield row + 1, column + 1, right * down


def samples(shapes, locations):
    """(indices of a sample, its level's first token, height, width, x * width, y * height) for every sample."""
    for index in itertools.product(*map(range, locations.shape[:-1])):
        level = index[3]
        height, width = shapes[level]
        start = sum(h * w for h, w in shapes[:level])
        x, y = locations[index].tolist()
        yield index, start, height, width, x * width, y * height


def attend(value, shapes, locations, weights):
    """(B, Q, M * D): the weighted sum of bilinear samples."""
    batch, _, heads, channels = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, channels)
    for index, start, height, width, x, y in samples(shapes, locations):
        image, query, head = index[:3]
        for row, column, share in corners(x - 0.5, y - 0.5):
            if 0 <= row < height and 0 <= column < width:
                token = start + row * width + column
                output[image, query, head] += weights[index] * share * value[image, token, head]
    return output.flatten(2)


def splat(shapes, locations, weights, pixel_offset):
    """(B, N): the weight that every token received."""
    received = torch.zeros(locations.shape[0], sum(h * w for h, w in shapes), dtype=weights.dtype)
    for index, start, height, width, x, y in samples(shapes, locations):
        for row, column, share in corners(x + pixel_offset, y + pixel_offset):
            if 0 <= row < height and 0 <= column < width:
                received[index[0], start + row * width + column] += weights[index] * share
    return received


def random_samples(shapes, *, batch=2, queries=3, heads=2, points=2, low=-0.3, high=1.3, seed=0):
    """Float64 locations, some of them outside, and weights that sum to 1 over levels and points."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*size, 2, generator=generator, dtype=torch.float64) * (high - low) + low
    weights = torch.rand(*size, generator=generator, dtype=torch.float64)
    return locations, weights / weights.sum((-2, -1), keepdim=True)


def random_value(shapes, *, batch=2, heads=2, channels=3, seed=1):
    """(B, N, M, D) in float64."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in shapes)
    return torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64)
