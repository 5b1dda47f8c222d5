"""The decoder layer with row-column decoupled attention to the memory (Anchor DETR, section 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_detr.layers import AttentionSamples, FeedForward, RowColumnAttention, SelfAttention
from sparse_detr.modeling.decoder.deformable import QueryPosition
from sparse_detr.structures import Tokens


class RowColumnDecoderLayer(nn.Module):
    """Self-attention among queries, row-column decoupled attention to the memory, a feed-forward network; post-norm.

    A query is compared with the columns and rows of the memory by its content plus the position of the x and y of its
    reference point, which the memory's `axes.embed` makes.

    Args:
        self_attn: attention of the queries to each other.
        cross_attn: attention of the queries to the memory.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the outputs of both attentions.
    """

    def __init__(
        self,
        *,
        self_attn: SelfAttention,
        cross_attn: RowColumnAttention,
        ffn: FeedForward,
        embed_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attn, self.cross_attn, self.ffn = self_attn, cross_attn, ffn
        self.self_attn_norm, self.cross_attn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        query_position: QueryPosition,
        memory: Tokens,
        mask: Tensor | None,
        *,
        need_samples: bool = False,
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Update the content (B, Q, C) of queries; see `DeformableDecoderLayer`. There are no samples: None."""
        assert memory.axes is not None
        attended = self.self_attn(content, query_position.position, mask)
        content = self.self_attn_norm(content + self.dropout(attended))
        x, y = memory.axes.embed(query_position.reference_points[..., :2]).unbind(-2)
        attended = self.cross_attn(content + x, content + y, memory)
        content = self.cross_attn_norm(content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content)), None
