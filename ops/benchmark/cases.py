"""What the op is measured on: pyramids, queries and their sampling locations.

N tokens of B images, M heads of D channels, Q queries with P points in each of L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUM_HEADS, HEAD_DIM, NUM_POINTS = 8, 32, 4
# Strides 8 to 64 of an image of 800x1216 pixels, 20197 tokens; and something that takes milliseconds.
PYRAMID = ((100, 152), (50, 76), (25, 38), (13, 19))
TINY_PYRAMID = ((8, 12), (4, 6), (2, 3), (1, 2))


@dataclass(frozen=True)
class Case:
    """A workload of the op.

    Args:
        name: in tables and plots.
        batch: B.
        share: part of the tokens that are queries, as in an encoder.
        boxes: number of queries with a box each, as in a decoder; takes the place of `share`.
        shapes: (h, w) of every level.
        num_heads: M.
        head_dim: D.
    """

    name: str
    batch: int = 1
    share: float = 1.0
    boxes: int = 0
    shapes: tuple[tuple[int, int], ...] = PYRAMID
    num_heads: int = NUM_HEADS
    head_dim: int = HEAD_DIM

    @property
    def num_tokens(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def num_queries(self) -> int:
        return self.boxes or max(1, round(self.share * self.num_tokens))

    def tiny(self) -> Case:
        """Return the same case on the tiny pyramid."""
        return replace(self, shapes=TINY_PYRAMID, boxes=min(self.boxes, 7))


CASES = (
    Case("Lq = S"),
    Case("Lq = 50 % S", share=0.5),
    Case("Lq = 30 % S", share=0.3),
    Case("Lq = 10 % S", share=0.1),
    Case("decoder, 300 queries", boxes=300),
    Case("N = 2, Lq = S", batch=2),
)
# Other numbers and sizes of heads than the usual ones, in an encoder that keeps 30 % of its tokens.
HEAD_CASES = tuple(
    Case(f"M {heads}, D {channels}", share=0.3, num_heads=heads, head_dim=channels)
    for heads in (4, 8, 16)
    for channels in (8, 16, 32, 64)
)
SUITES = {"usual": CASES, "heads": HEAD_CASES}


@dataclass(frozen=True, eq=False)
class Levels:
    """The pyramid's geometry in the forms that implementations ask for."""

    shapes: tuple[tuple[int, int], ...]
    shape_tensor: Tensor  # (L, 2), int64
    starts: Tensor  # (L,), int64


@dataclass(frozen=True, eq=False)
class Inputs:
    """Random inputs of one call, in the raw form and in the form that the plain op takes."""

    levels: Levels
    value: Tensor  # (B, N, M, D)
    reference_points: Tensor  # (B, Q, L, 2) or (B, Q, L, 4)
    offsets: Tensor  # (B, Q, M, L, P, 2)
    logits: Tensor  # (B, Q, M, L, P)
    locations: Tensor  # (B, Q, M, L, P, 2)
    weights: Tensor  # (B, Q, M, L, P)
    grad_output: Tensor  # (B, Q, M * D)

    def in_one_spot(self) -> Inputs:
        """Return as many queries, all in the middle of maps of 4 x 4 cells: their values lie in the first cache.

        A kernel that copies the value has next to nothing to copy.
        """
        levels = make_levels(((4, 4),) * len(self.levels.shapes), str(self.value.device))
        value = self.value[:, : 16 * len(levels.shapes)].contiguous()
        return replace(self, levels=levels, value=value, locations=torch.full_like(self.locations, 0.5))

    def cast_samples(self, dtype: torch.dtype) -> Inputs:
        """Cast the samples, for implementations that want one dtype for everything."""
        if self.locations.dtype == dtype:
            return self
        names = ("reference_points", "offsets", "logits", "locations", "weights")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


def make_inputs(case: Case, *, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
    """Make fresh inputs. The value has `dtype`; locations are float32, or float64 if the value is."""
    generator = torch.Generator(device).manual_seed(seed)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    options = dict(generator=generator, device=device, dtype=real)
    size = (case.batch, case.num_queries, case.num_heads, len(case.shapes), NUM_POINTS)
    value = torch.randn(case.batch, case.num_tokens, case.num_heads, case.head_dim, **options).to(dtype)
    grad_output = torch.randn(case.batch, case.num_queries, case.num_heads * case.head_dim, **options).to(dtype)
    reference_points = random_boxes(case, options) if case.boxes else kept_cells(case, options)
    offsets = initial_offsets(case.num_heads).to(value.device, real)[:, None] + torch.randn(*size, 2, **options)
    logits = torch.randn(*size, **options)
    locations, weights = eager_samples(case.shapes, reference_points, offsets, logits)
    levels = make_levels(case.shapes, device)
    return Inputs(levels, value, reference_points, offsets, logits, locations, weights, grad_output)


def make_levels(shapes: Sequence[tuple[int, int]], device: str) -> Levels:
    """Return sizes and first tokens as int64 tensors on the device."""
    sizes = [height * width for height, width in shapes]
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], device=device)
    return Levels(tuple(shapes), torch.tensor(shapes, device=device), starts)


def initial_offsets(num_heads: int = NUM_HEADS) -> Tensor:
    """Return (M, P, 2): point p of head m is p + 1 pixels away in direction m, as the layer starts out."""
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    return direction[:, None] * torch.arange(1, NUM_POINTS + 1)[:, None]


def kept_cells(case: Case, options: dict) -> Tensor:
    """Return (B, Q, L, 2), the centres of the query tokens: all in order, or a random part in random order.

    Top-k returns tokens by score, so that neighbours in memory are no neighbours in the image.
    """
    centres = torch.cat([cell_centres(height, width) for height, width in case.shapes])
    centres = centres.to(options["device"], options["dtype"]).expand(case.batch, -1, -1)
    if case.share < 1:
        scores = torch.rand(case.batch, case.num_tokens, **options)
        kept = scores.topk(case.num_queries, dim=1).indices
        centres = centres.gather(1, kept[..., None].expand(-1, -1, 2))
    return centres[:, :, None].expand(-1, -1, len(case.shapes), -1).contiguous()


def cell_centres(height: int, width: int) -> Tensor:
    """Return (h * w, 2) as (x, y) in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def random_boxes(case: Case, options: dict) -> Tensor:
    """Return (B, Q, L, 4): cxcywh anywhere, 2 % to 50 % of the image wide and high."""
    boxes = torch.rand(case.batch, case.num_queries, 4, **options)
    boxes[..., 2:] = 0.02 + 0.48 * boxes[..., 2:]
    return boxes[:, :, None].expand(-1, -1, len(case.shapes), -1).contiguous()


def eager_samples(
    shapes: Sequence[tuple[int, int]], reference_points: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute locations and weights from the linear layers' outputs in PyTorch: what the fused form saves."""
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    return eager_locations(shapes, reference_points, offsets), weights


def eager_locations(shapes: Sequence[tuple[int, int]], reference_points: Tensor, offsets: Tensor) -> Tensor:
    """Add offsets in pixels to points, or offsets in shares of the box to boxes."""
    centres = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        scale = 1 / offsets.new_tensor(shapes).flip(-1)[:, None]
    else:
        scale = reference_points[:, :, None, :, None, 2:] * (0.5 / offsets.shape[-2])
    return centres + offsets * scale


def compulsory_bytes(inputs: Inputs, *, form: str, backward: bool) -> int:
    """Count the bytes that must move if every input and gradient is read once and every result written once.

    Of the value no more is read than the samples' cells; its gradient is written everywhere.
    """
    samples = num_bytes(inputs.locations) + num_bytes(inputs.weights)
    if form == "splat":
        tokens = inputs.value.shape[0] * inputs.value.shape[1]
        return samples + tokens * inputs.weights.element_size()
    references = num_bytes(inputs.reference_points) if form == "fused" else 0
    value, output = num_bytes(inputs.value), num_bytes(inputs.grad_output)
    cells = 4 * inputs.weights.numel() * inputs.value.shape[-1] * inputs.value.element_size()
    read = min(value, cells) + samples + references
    return read + output + (read + output + value + samples) * backward


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
