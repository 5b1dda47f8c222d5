"""Layers whose `forward` replaces that of a layer of the same name; such a class has no other members."""

import torch
from torch import Tensor, nn

from .functions import multi_scale_deformable_attention


class MultiScaleDeformableAttention(nn.Module):
    """The layer of that name in transformers, in all its models."""

    has_backward: bool = True
    can_torch_compile: bool = True

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Return (B, Q, M * D).

        Args:
            value: (B, N, M, D).
            value_spatial_shapes_list: (h, w) of every level; `value_spatial_shapes`, `level_start_index` and
                `im2col_step` are not needed.
            sampling_locations: (B, Q, M, L, P, 2), as (x, y) in [0, 1].
            attention_weights: (B, Q, M, L, P).
        """
        output = multi_scale_deformable_attention(
            value,
            value_spatial_shapes_list,
            sampling_locations,
            attention_weights.reshape(sampling_locations.shape[:-1]),
        )
        return output.to(torch.promote_types(value.dtype, attention_weights.dtype))
