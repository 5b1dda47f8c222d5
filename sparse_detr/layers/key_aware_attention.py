"""Key-aware deformable attention: a query weighs its samples by what they hold (Lite DETR, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers.attention import check_heads
from sparse_detr.layers.deformable_attention import (
    AttentionSamples,
    MultiScaleDeformableAttention,
    initial_offsets,
    padding_mask_of,
)
from sparse_detr.ops import multi_scale_deformable_attention, sample_products, sampling_locations
from sparse_detr.structures import Pyramid


class KeyAwareDeformableAttention(nn.Module):
    """Attention whose queries read P points of each level and head, weighted by dot products of query and sample.

    For every head, the weights are softmax(W_q q . v_i / sqrt(D)) over all samples v_i of the projected source: keys
    are the values, as in the public code. In all else it is `MultiScaleDeformableAttention`.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        num_levels: L.
        num_points: P.
        outside: samples that touch no valid cell are `excluded` from the softmax; or have a logit of `zero`, as in the
            public code, where they take weight from the others. A query without any other sample reads zero.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        outside: Literal["excluded", "zero"] = "excluded",
    ):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.num_levels, self.num_points, self.outside = num_heads, num_levels, num_points, outside
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.query_proj = nn.Linear(embed_dim, embed_dim)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: offsets as in `MultiScaleDeformableAttention`, the projections Xavier-uniform."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(initial_offsets(self.num_heads, self.num_levels, self.num_points))
        for projection in (self.query_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Attend; arguments and result are those of `MultiScaleDeformableAttention`."""
        return self.attend_with_samples(query, reference_points, source, pyramid)[0]

    def attend_with_samples(
        self, query: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid
    ) -> tuple[Tensor, AttentionSamples]:
        """Return what `forward` does, and the samples."""
        shapes, padding_mask = pyramid.spatial_shapes, padding_mask_of(pyramid)
        value = self.value_proj(source).unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        locations = sampling_locations(reference_points, offsets, shapes)
        scaled = self.query_proj(query) * value.shape[-1] ** -0.5
        logits = sample_products(value, shapes, locations, scaled, padding_mask=padding_mask)
        weights = self._weights(logits, locations, pyramid)
        output = multi_scale_deformable_attention(value, shapes, locations, weights, padding_mask=padding_mask)
        return self.output_proj(output), AttentionSamples(locations, weights)

    def _weights(self, logits: Tensor, locations: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the weights (B, Q, M, L, P) of the samples."""
        if self.outside == "zero":
            return logits.flatten(3).softmax(-1).view_as(logits)
        readable = touches_valid_cells(locations, pyramid)
        # The lowest finite number, not -inf: where no sample is readable the softmax is finite, and so is its gradient.
        logits = logits.masked_fill(~readable, torch.finfo(logits.dtype).min)
        return logits.flatten(3).softmax(-1).view_as(logits) * readable


def touches_valid_cells(locations: Tensor, pyramid: Pyramid) -> Tensor:
    """Return (B, Q, M, L, P) bool: whether the bilinear sample at a location (x, y) reads any cell of the image."""
    shapes = torch.tensor(pyramid.spatial_shapes, device=locations.device, dtype=locations.dtype).flip(-1)
    valid = pyramid.valid_sizes.flip(-1).to(locations.dtype)  # (B, L, 2)
    cells = locations * shapes[:, None] - 0.5
    return ((cells > -1) & (cells < valid[:, None, None, :, None])).all(-1)


DeformableAttention = MultiScaleDeformableAttention | KeyAwareDeformableAttention
"""Deformable attention with weights of either kind."""
