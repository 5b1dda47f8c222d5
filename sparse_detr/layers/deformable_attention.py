"""Multi-scale deformable attention as a layer (Deformable DETR, section 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_detr.layers.attention import check_heads
from sparse_detr.ops import fused_deformable_attention, locate_samples, multi_scale_deformable_attention
from sparse_detr.structures import Pyramid


@dataclass(frozen=True, eq=False)
class AttentionSamples:
    """The sampling locations of every query, and their attention weights.

    Args:
        locations: (B, Q, M, L, P, 2), (x, y) in [0, 1] of the padded level.
        weights: (B, Q, M, L, P), which sum to 1 over L and P.
    """

    locations: Tensor
    weights: Tensor


class MultiScaleDeformableAttention(nn.Module):
    """Attention whose queries read P points of each level and head, at offsets and with weights that they predict.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        num_levels: L.
        num_points: P.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: point p of head m lies p + 1 pixels away, in the m-th of M directions on the unit square."""
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(initial_offsets(self.num_heads, self.num_levels, self.num_points))
        for tensor in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(tensor)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Attend: `sample` and `read` in one kernel, which does not keep the locations and weights.

        Args:
            query: (B, Q, C), content plus position.
            reference_points: (B, Q, L, 2) points, to which offsets in pixels are added; or (B, Q, L, 4) boxes cxcywh,
                of which an offset of P is half the width or height.
            source: (B, N, C); padding reads as zero.
            pyramid: geometry of the source.

        Returns:
            (B, Q, C).
        """
        offsets, logits = self._offsets_and_logits(query)
        output = fused_deformable_attention(
            self._value(source),
            pyramid.spatial_shapes,
            reference_points,
            offsets,
            logits,
            padding_mask=padding_mask_of(pyramid),
        )
        return self.output_proj(output)

    def sample(self, query: Tensor, reference_points: Tensor, pyramid: Pyramid) -> AttentionSamples:
        """Return the sampling locations and weights; for the arguments see `forward`."""
        offsets, logits = self._offsets_and_logits(query)
        return AttentionSamples(*locate_samples(reference_points, offsets, logits, pyramid.spatial_shapes))

    def attend_with_samples(
        self, query: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid
    ) -> tuple[Tensor, AttentionSamples]:
        """Return what `forward` does, and the samples."""
        samples = self.sample(query, reference_points, pyramid)
        return self.read(source, samples, pyramid), samples

    def read(self, source: Tensor, samples: AttentionSamples, pyramid: Pyramid) -> Tensor:
        """Return (B, Q, C): `source` (B, N, C) read at `samples`; padding reads as zero."""
        output = multi_scale_deformable_attention(
            self._value(source),
            pyramid.spatial_shapes,
            samples.locations,
            samples.weights,
            padding_mask=padding_mask_of(pyramid),
        )
        return self.output_proj(output)

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets (B, Q, M, L, P, 2) and logits (B, Q, M, L, P)."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets, logits = self.sampling_offsets(query), self.attention_weights(query)
        return offsets.unflatten(-1, (*shape, 2)), logits.unflatten(-1, shape)

    def _value(self, source: Tensor) -> Tensor:
        """Return the value (B, N, M, D)."""
        return self.value_proj(source).unflatten(-1, (self.num_heads, -1))


def padding_mask_of(pyramid: Pyramid) -> Tensor | None:
    """Return the padding mask as the ops take it: None without padding."""
    return pyramid.padding_mask if pyramid.has_padding else None


def initial_offsets(num_heads: int, num_levels: int, num_points: int) -> Tensor:
    """Return (M * L * P * 2,): point p of head m lies p + 1 pixels away, in direction m of M on the unit square."""
    angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1)[:, None]
    return (direction[:, None, None] * steps).expand(-1, num_levels, -1, -1).flatten()
