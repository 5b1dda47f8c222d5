"""Multi-scale deformable attention, its gradients and its map: the formulas in plain loops."""

import itertools
import math

import torch

# Largest error of outputs and gradients, relative to the largest number. For half precision it is one rounding.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1.01 * 2**-11, torch.bfloat16: 1.01 * 2**-8}
GPU_TOLERANCES = {**TOLERANCES, torch.float32: 1e-5}


def tolerance(tensor):
    """Return the tolerance of a result."""
    return (GPU_TOLERANCES if tensor.is_cuda else TOLERANCES)[tensor.dtype]


def corners(x, y):
    """Yield the four cells (row, column) around pixel coordinate (x, y), and their bilinear shares."""
    column, row = math.floor(x), math.floor(y)
    right, down = x - column, y - row
    yield row, column, (1 - right) * (1 - down)
    yield row, column + 1, right * (1 - down)
    yield row + 1, column, (1 - right) * down
    yield row + 1, column + 1, right * down


def samples(shapes, locations):
    """Yield (indices, first token of the level, height, width, x * width, y * height) of every finite sample."""
    for index in itertools.product(*map(range, locations.shape[:-1])):
        level = index[3]
        height, width = shapes[level]
        start = sum(h * w for h, w in shapes[:level])
        x, y = locations[index].tolist()
        if math.isfinite(x) and math.isfinite(y):
            yield index, start, height, width, x * width, y * height


def attend(value, shapes, locations, weights):
    """Return (B, Q, M * D): the weighted sum of bilinear samples."""
    batch, _, heads, channels = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, channels)
    for index, start, height, width, x, y in samples(shapes, locations):
        image, query, head = index[:3]
        for row, column, share in corners(x - 0.5, y - 0.5):
            if 0 <= row < height and 0 <= column < width:
                token = start + row * width + column
                output[image, query, head] += weights[index] * share * value[image, token, head]
    return output.flatten(2)


def attend_gradients(value, shapes, locations, weights, grad_output):
    """Return the gradients of `attend` by value, locations and weights."""
    grad_output = grad_output.unflatten(-1, value.shape[2:])
    gradients = [torch.zeros_like(x) for x in (value, locations, weights)]
    grad_value, grad_locations, grad_weights = gradients
    for index, start, height, width, x, y in samples(shapes, locations):
        image, query, head = index[:3]
        received = grad_output[image, query, head]
        right, down = x - 0.5 - math.floor(x - 0.5), y - 0.5 - math.floor(y - 0.5)
        slopes_x = (down - 1, 1 - down, -down, down)
        slopes_y = (right - 1, -right, 1 - right, right)
        for (row, column, share), slope_x, slope_y in zip(corners(x - 0.5, y - 0.5), slopes_x, slopes_y, strict=True):
            if 0 <= row < height and 0 <= column < width:
                token = start + row * width + column
                grad_value[image, token, head] += weights[index] * share * received
                product = (received * value[image, token, head]).sum()
                grad_weights[index] += share * product
                grad_locations[index] += (
                    weights[index] * product * value.new_tensor([slope_x * width, slope_y * height])
                )
    return gradients


def fuse(shapes, references, offsets, logits):
    """Return locations and weights of the fused form."""
    locations, weights = torch.empty_like(offsets), torch.empty_like(logits)
    for index in itertools.product(*map(range, logits.shape)):
        image, query, head, level, _ = index
        reference = references[image, query, level].tolist()
        for axis in (0, 1):
            step = step_size(shapes, reference, level, axis, logits.shape[-1])
            locations[(*index, axis)] = reference[axis] + offsets[(*index, axis)] * step
        row = [math.exp(logit) for logit in logits[image, query, head].flatten().tolist()]
        weights[index] = math.exp(logits[index]) / sum(row)
    return locations, weights


def fuse_gradients(shapes, references, offsets, weights, grad_locations, grad_weights):
    """Return the gradients of `fuse` by references, offsets and logits."""
    gradients = [torch.zeros_like(x) for x in (references, offsets, weights)]
    grad_references, grad_offsets, grad_logits = gradients
    for index in itertools.product(*map(range, weights.shape)):
        image, query, head, level, _ = index
        num_points = weights.shape[-1]
        reference = references[image, query, level].tolist()
        for axis in (0, 1):
            received = grad_locations[(*index, axis)]
            grad_offsets[(*index, axis)] = received * step_size(shapes, reference, level, axis, num_points)
            grad_references[image, query, level, axis] += received
            if len(reference) == 4:
                grad_references[image, query, level, 2 + axis] += received * offsets[(*index, axis)] * 0.5 / num_points
        expected = (weights[image, query, head] * grad_weights[image, query, head]).sum()
        grad_logits[index] = weights[index] * (grad_weights[index] - expected)
    return gradients


def step_size(shapes, reference, level, axis, num_points):
    """Return the length of an offset of 1: a pixel, or its share of half the box."""
    return reference[2 + axis] * 0.5 / num_points if len(reference) == 4 else 1 / shapes[level][1 - axis]


def splat(shapes, locations, weights, pixel_offset):
    """Return (B, N): the weight that every token receives."""
    received = weights.new_zeros(locations.shape[0], sum(h * w for h, w in shapes))
    for index, start, height, width, x, y in samples(shapes, locations):
        for row, column, share in corners(x + pixel_offset, y + pixel_offset):
            if 0 <= row < height and 0 <= column < width:
                received[index[0], start + row * width + column] += weights[index] * share
    return received


class RandomNumbers:
    """Random float64 numbers, the same on every device, as tensors on the default device."""

    def __init__(self, seed):
        self.options = {"generator": torch.Generator("cpu").manual_seed(seed), "dtype": torch.float64, "device": "cpu"}

    def uniform(self, *size):
        return torch.rand(*size, **self.options).to(torch.get_default_device())

    def normal(self, *size):
        return torch.randn(*size, **self.options).to(torch.get_default_device())


def random_samples(shapes, *, batch=2, queries=3, heads=2, points=2, low=-0.3, high=1.3, seed=0):
    """Return float64 locations, some of them outside, and weights that sum to 1 over levels and points."""
    numbers = RandomNumbers(seed)
    size = (batch, queries, heads, len(shapes), points)
    locations = numbers.uniform(*size, 2) * (high - low) + low
    weights = numbers.uniform(*size)
    return locations, weights / weights.sum((-2, -1), keepdim=True)


def random_value(shapes, *, batch=2, heads=2, channels=3, seed=1):
    """Return a value (B, N, M, D) in float64."""
    return RandomNumbers(seed).normal(batch, sum(h * w for h, w in shapes), heads, channels)


def random_predictions(shapes, size, *, batch=2, queries=3, heads=2, points=2, seed=2):
    """Return float64 reference points of `size` numbers, offsets (some leave the maps), and logits."""
    numbers = RandomNumbers(seed)
    sizes = (batch, queries, heads, len(shapes), points)
    references = numbers.uniform(batch, queries, len(shapes), size)
    offsets = 2 * numbers.normal(*sizes, 2)
    return references, offsets, numbers.normal(*sizes)


def random_padding(shapes, *, batch=2, seed=3):
    """Return a padding mask (B, N), True on a third of the tokens."""
    return RandomNumbers(seed).uniform(batch, sum(h * w for h, w in shapes)) < 1 / 3


def relative_error(result, expected):
    """Return the largest error, relative to the largest expected number."""
    if not expected.numel():
        return 0.0
    result, expected = result.double().cpu(), expected.double().cpu()
    return ((result - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def with_gradients(function, *tensors, seed=9):
    """Return the output, a random gradient of the output, and the gradients of the tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output = function(*leaves)
    grad_output = RandomNumbers(seed).normal(*output.shape).to(output)
    return output, grad_output, torch.autograd.grad(output, leaves, grad_output)
