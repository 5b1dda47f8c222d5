"""The deformable encoder, which refines the selected tokens only (Deformable DETR, 4.1; Sparse DETR, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.structures import Pyramid, Tokens, TokenSelection


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """Args:
    memory: (B, N, C), every token; those that were not selected are as they came.
    layers: (B, K, C) of every layer, the selected tokens after it.
    """

    memory: Tensor
    layers: tuple[Tensor, ...]


class EncoderLayer(nn.Module):
    """Deformable self-attention of some tokens over all of them, then a feed-forward network; post-norm.

    Args:
        self_attn: the attention.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the attention's output.
    """

    def __init__(self, *, self_attn: MultiScaleDeformableAttention, ffn: FeedForward, embed_dim: int, dropout: float):
        super().__init__()
        self.self_attn, self.ffn = self_attn, ffn
        self.self_attn_norm, self.ffn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, content: Tensor, position: Tensor, reference_points: Tensor, source: Tensor, pyramid: Pyramid
    ) -> Tensor:
        """Refine (B, K, C) `content`, reading `source` (B, N, C) around (B, K, L, 2) `reference_points`."""
        attended = self.self_attn(content + position, reference_points, source, pyramid)
        content = self.self_attn_norm(content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content))


class Encoder(nn.Module):
    """Layers that gather the selected tokens once and write them back after every layer.

    Args:
        layers: the layers, first to last.
    """

    def __init__(self, *, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tokens, selection: TokenSelection) -> EncoderOutput:
        pyramid, memory = tokens.pyramid, tokens.content
        content, position = selection.gather(tokens.content), selection.gather(tokens.position)
        references = selection.gather(encoder_reference_points(pyramid, position.dtype))
        outputs = []
        for layer in self.layers:
            content = layer(content, position, references, memory, pyramid)
            memory = selection.scatter(memory, content)
            outputs.append(content)
        return EncoderOutput(memory=memory, layers=tuple(outputs))


def encoder_reference_points(pyramid: Pyramid, dtype: torch.dtype) -> Tensor:
    """(B, N, L, 2): the centre of every token, as (x, y) in [0, 1] of each padded level."""
    return pyramid.centers(dtype)[:, :, None] * pyramid.valid_ratios(dtype)[:, None]
