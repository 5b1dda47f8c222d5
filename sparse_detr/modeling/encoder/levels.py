"""The encoder layer with a narrow feed-forward network for tokens of fine levels (Lite DETR's public code)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.layers import FeedForward, copies
from sparse_detr.modeling.encoder.deformable import DeformableEncoderLayer, TokenRows
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Pyramid, full_layers


class LevelFeedForwardLayer(DeformableEncoderLayer):
    """`DeformableEncoderLayer` in which tokens of fine levels have their own feed-forward network and norm.

    Its rows must be in token order and end with all tokens of the coarse levels, as those of `LevelSelector` are.

    Args:
        fine_ffn: the feed-forward branch of tokens of fine levels.
        high_levels: number of coarse levels.
        embed_dim: C.
        options: arguments of `DeformableEncoderLayer`.
    """

    def __init__(self, *, fine_ffn: FeedForward, high_levels: int, embed_dim: int, **options: Any):
        super().__init__(embed_dim=embed_dim, **options)
        self.fine_ffn, self.fine_ffn_norm = fine_ffn, nn.LayerNorm(embed_dim)
        self.high_levels = high_levels

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, proposals: Proposals) -> Tensor:
        """Return the refined content of some tokens; see `DeformableEncoderLayer`."""
        content = self.attend(rows, source, pyramid)
        start = content.shape[1] - sum(pyramid.level_sizes[-self.high_levels :])
        fine, coarse = content[:, :start], content[:, start:]
        fine = self.fine_ffn_norm(fine + self.fine_ffn(fine))
        return torch.cat([fine, self.ffn_norm(coarse + self.ffn(coarse))], 1)


def level_layers(*, module: nn.Module, full: nn.Module, count: int, blocks: int) -> list[nn.Module]:
    """Return `count` copies of a layer; the last of every block is a copy of `full`.

    Raises:
        ValueError: the layers cannot be divided into so many blocks.
    """
    kinds = full_layers(num_layers=count, blocks=blocks)
    return [copies(module=full if is_full else module, count=1)[0] for is_full in kinds]
