"""Attention in inference form.

Deformable attention is linear in the value, and the value is a linear layer of the source. So a query may sample the
source first, and project what it sampled. With weights a_i, bilinear shares in them, of the cells s_i that a query
reads in head m:

    sum_i a_i (W_m s_i + b_m)  =  W_m (sum_i a_i s_i)  +  b_m (sum_i a_i)

What lies outside of the map or on padding reads as zero after the projection, bias included; so the last sum, the mass,
is over valid cells inside the map. This projects Q M rows instead of N, and reads M times as many channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_detr.inference.conversion import Conversion, InferenceForm, copied, runs_eagerly
from sparse_detr.inference.linear import PackedLinear
from sparse_detr.inference.packing import Packing, padding_of
from sparse_detr.layers import (
    AttentionSamples,
    CrossAttention,
    MultiScaleDeformableAttention,
    PackedAttention,
    SelfAttention,
    attention_mask,
    multi_head_attention,
)
from sparse_detr.layers.deformable_attention import padding_mask_of
from sparse_detr.modeling.encoder.dual_attention import ObjectAttention
from sparse_detr.ops import fused_deformable_attention, multi_scale_deformable_attention
from sparse_detr.structures import Pyramid, geometry_dtype

READ_COST = 11
"""How many products of a matrix product take the time of one product with a cell that a sample reads: 8 measured with
AVX-512, 14 with AVX2."""


class InferenceDeformableAttention(InferenceForm, MultiScaleDeformableAttention):
    """`MultiScaleDeformableAttention` that projects before or after it samples, whichever is cheaper."""

    sampling: PackedLinear
    """`sampling_offsets` and `attention_weights` as one layer."""
    value_proj: PackedLinear
    output_proj: PackedLinear
    has_bias: bool
    """Whether the projection of the value has a bias other than zero."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceDeformableAttention | None:
        """Return the form of the attention; None if its layers are not plain linear ones."""
        assert isinstance(part, MultiScaleDeformableAttention)
        value, output = part.value_proj, part.output_proj
        if not all(type(layer) is nn.Linear for layer in part.children()):
            return None
        result = copied(
            part,
            cls,
            convert,
            sampling_offsets=None,
            attention_weights=None,
            value_proj=PackedLinear.of_weights(value.weight, value.bias, convert, quantize=True),
            output_proj=PackedLinear.of_weights(output.weight, output.bias, convert, quantize=True),
        )
        both = part.sampling_offsets, part.attention_weights
        weight, bias = torch.cat([layer.weight for layer in both]), torch.cat([layer.bias for layer in both])
        result.sampling = PackedLinear.of_weights(weight, bias, convert)
        result.has_bias = bool(value.bias.any())
        return result

    def forward(self, query: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Attend; see `MultiScaleDeformableAttention`."""
        rows = Packing.of(None, (query.shape[0], query.shape[1]))
        return rows.put(self.attend(rows.take(query), rows, reference_points, source, pyramid))

    def attend(
        self, query: Tensor, rows: Packing, reference_points: Tensor, source: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Attend from some rows alone.

        Args:
            query: (R, C), the rows of a (B, K, C) query.
            rows: which rows they are.
            reference_points: (B, K, L, 2|4).
            source, pyramid: as for `forward`.

        Returns:
            (R, C).
        """
        offsets, logits = self._split(rows.put(self._sampling_of(query)))
        # A GPU projects fast, and a graph with open sizes has no numbers to compare.
        can_count = source.device.type == "cpu" and runs_eagerly()
        if can_count and self.samples_first(rows.shape[0] * rows.shape[1], source.shape[0] * source.shape[1]):
            sampled = self._sample_first(offsets, logits, reference_points, source, pyramid)
        else:
            sampled = fused_deformable_attention(
                self._value_of(source, pyramid),
                pyramid.spatial_shapes,
                reference_points,
                offsets,
                logits,
                padding_mask=padding_mask_of(pyramid),
            )
        return self.output_proj.multiply(rows.take(sampled)).to(query.dtype)

    def samples_first(self, queries: int, tokens: int) -> bool:
        """Return whether sampling before the projection takes less time.

        Args:
            queries: number of queries of all images.
            tokens: number of tokens of all images.
        """
        channels = self.value_proj.in_features
        reads = READ_COST * 4 * self.num_levels * self.num_points
        sample_first = queries * self.num_heads * channels * (reads + channels // self.num_heads)
        project_first = tokens * channels * channels + queries * channels * reads
        return sample_first < project_first

    def read(self, source: Tensor, samples: AttentionSamples, pyramid: Pyramid) -> Tensor:
        """Return (B, Q, C): `source` (B, N, C) read at `samples`; padding reads as zero."""
        output = multi_scale_deformable_attention(
            self._value_of(source, pyramid),
            pyramid.spatial_shapes,
            samples.locations,
            samples.weights,
            padding_mask=padding_mask_of(pyramid),
        )
        return self.output_proj.multiply(output).to(source.dtype)

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets (..., M, L, P, 2) and logits (..., M, L, P), in the geometry's dtype."""
        return self._split(self._sampling_of(query))

    def _sampling_of(self, query: Tensor) -> Tensor:
        """Return the offsets and logits (..., 3 M L P) of queries (..., C), in the geometry's dtype."""
        return self.sampling(query.to(self.sampling.weight.dtype)).to(geometry_dtype(query.dtype))

    def _split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Return offsets and logits as views; the op reads their rows where they are."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets, logits = both.tensor_split([2 * math.prod(shape)], -1)
        return offsets.unflatten(-1, (*shape, 2)), logits.unflatten(-1, shape)

    def _value_of(self, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the value (B, N, M, D); its padding holds anything."""
        tokens = padding_of(pyramid.padding_mask, pyramid.has_padding)
        value = tokens.put(self.value_proj.multiply(tokens.take(source)), fill=None)
        return value.unflatten(-1, (self.num_heads, -1))

    def _sample_first(
        self, offsets: Tensor, logits: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Return (B, Q, C), the samples of all heads, projected after sampling."""
        heads, padding_mask = self.num_heads, padding_mask_of(pyramid)
        batch_size, queries = offsets.shape[:2]
        # Every head of a query is a query of one head, which reads all channels.
        points = reference_points.repeat_interleave(heads, 1)
        samples = points, offsets.flatten(1, 2).unsqueeze(2), logits.flatten(1, 2).unsqueeze(2)
        shapes = pyramid.spatial_shapes
        read = fused_deformable_attention(source[:, :, None], shapes, *samples, padding_mask=padding_mask)
        read = read.view(batch_size * queries, heads, -1).transpose(0, 1)  # (M, B Q, C)
        weight = self.value_proj.weight.unflatten(0, (heads, -1)).to(read.dtype)
        sampled = (read @ weight.transpose(1, 2)).transpose(0, 1)  # (B Q, M, D)
        if self.has_bias:
            ones = source.new_ones(1, 1, 1, 1).expand(*source.shape[:2], 1, 1).contiguous()
            mass = fused_deformable_attention(ones, shapes, *samples, padding_mask=padding_mask)
            bias = self.value_proj.bias.unflatten(0, (heads, -1)).to(read.dtype)
            sampled = torch.addcmul(sampled, mass.view(-1, heads, 1), bias)
        return sampled.reshape(batch_size, queries, -1)


class InferenceAttention(InferenceForm):
    """The projections and the product of `SelfAttention` or `CrossAttention`.

    Args:
        part: the attention.
        convert: the conversion.
        split: how many of the three projections of queries, keys and values come from one input: (2, 1), or (1, 1, 1).
    """

    def __init__(self, part: PackedAttention | ObjectAttention, convert: Conversion, split: tuple[int, ...]):
        super().__init__()
        self.num_heads = part.num_heads
        sizes = [number * part.out_proj.in_features for number in split]
        pairs = zip(part.in_proj_weight.split(sizes), part.in_proj_bias.split(sizes), strict=True)
        self.in_projs = nn.ModuleList(PackedLinear.of_weights(weight, bias, convert) for weight, bias in pairs)
        self.out_proj = PackedLinear.of_weights(part.out_proj.weight, part.out_proj.bias, convert)
        self.training = False

    @property
    def projections(self) -> list[PackedLinear]:
        """The layers in front of the product."""
        return [layer for layer in self.in_projs if isinstance(layer, PackedLinear)]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        attended = multi_head_attention(query, key, value, num_heads=self.num_heads, mask=mask, dropout=0.0)
        return self.out_proj.multiply(attended).to(dtype)


class InferenceSelfAttention(InferenceAttention):
    """`SelfAttention`."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceSelfAttention:
        """Return the form of a `SelfAttention`."""
        assert isinstance(part, SelfAttention)
        return cls(part, convert, (2, 1))

    def forward(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; see `SelfAttention`."""
        both, values = self.projections
        query, key = both.multiply(content + position).chunk(2, -1)
        return self._attend(query, key, values.multiply(content), mask, content.dtype)


class InferenceObjectAttention(InferenceSelfAttention):
    """`ObjectAttention`."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceObjectAttention:
        """Return the form of an `ObjectAttention`."""
        assert isinstance(part, ObjectAttention)
        return cls(part, convert, (2, 1))

    def forward(self, content: Tensor, position: Tensor, valid: Tensor | None) -> Tensor:
        """Attend; see `ObjectAttention`."""
        return super().forward(content, position, attention_mask(valid))


class InferenceCrossAttention(InferenceAttention):
    """`CrossAttention`."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceCrossAttention:
        """Return the form of a `CrossAttention`."""
        assert isinstance(part, CrossAttention)
        return cls(part, convert, (1, 1, 1))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend; see `CrossAttention`."""
        dtype = query.dtype
        query, key, value = (layer.multiply(x) for layer, x in zip(self.projections, (query, key, value), strict=True))
        return self._attend(query, key, value, mask, dtype)
