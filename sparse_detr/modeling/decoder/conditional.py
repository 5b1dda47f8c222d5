"""The decoder layer with full attention by content and position (Conditional DETR; DAB-DETR, sections 4.2 and 4.4).

Meng et al., ICCV 2021, and Liu et al., ICLR 2022.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import AttentionSamples, FeedForward, check_heads, multi_head_attention, token_mask
from sparse_detr.modeling.decoder.deformable import DecoderLayer, QueryPosition
from sparse_detr.structures import Tokens


class ConditionalSelfAttention(nn.Module):
    """Self-attention of queries, with separate projections for content and position.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        dropout: probability, on the attention weights.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content_proj, self.query_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.key_content_proj, self.key_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.value_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, Q, C) from (B, Q, C) `content` and `position`; for `mask` see `attention_mask`."""
        attended = multi_head_attention(
            self.query_content_proj(content) + self.query_pos_proj(position),
            self.key_content_proj(content) + self.key_pos_proj(position),
            self.value_proj(content),
            num_heads=self.num_heads,
            mask=mask,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended)


class ConditionalCrossAttention(nn.Module):
    """Full attention of queries to the memory by content and spatial similarity (DAB-DETR, section 4.2).

    In every head the query is its content concatenated with its `spatial` embedding, and the key is its content
    concatenated with its position, so the product is the sum of a content and a spatial similarity.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        dropout: probability, on the attention weights.
        first: for the first layer, whose queries have no content of the image yet: add positions to the content of
            queries and keys.
        memory_padding: `hidden`: no query attends to padding; `visible`: queries attend to it too, as in detrex.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_heads: int,
        dropout: float,
        first: bool,
        memory_padding: Literal["hidden", "visible"] = "hidden",
    ):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.dropout, self.memory_padding = num_heads, dropout, memory_padding
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim) if first else None
        self.query_spatial_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj, self.key_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.value_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, content: Tensor, query_position: QueryPosition, memory: Tokens) -> Tensor:
        """Return (B, Q, C) from the `content` (B, Q, C) and position of the queries, and the memory that they read."""
        assert query_position.spatial is not None
        query, key = self.query_content_proj(content), self.key_content_proj(memory.content)
        spatial_query = self.query_spatial_proj(query_position.spatial)
        spatial_key = self.key_pos_proj(memory.position)
        if self.query_pos_proj is not None:
            query, key = query + self.query_pos_proj(query_position.position), key + spatial_key
        attended = multi_head_attention(
            self._concatenate(query, spatial_query),
            self._concatenate(key, spatial_key),
            self.value_proj(memory.content),
            num_heads=self.num_heads,
            mask=token_mask(memory) if self.memory_padding == "hidden" else None,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended)

    def _concatenate(self, content: Tensor, spatial: Tensor) -> Tensor:
        """Concatenate two (B, Q, C) to (B, Q, 2C), head by head."""
        return torch.cat([x.unflatten(-1, (self.num_heads, -1)) for x in (content, spatial)], -1).flatten(-2)


class ConditionalDecoderLayer(DecoderLayer):
    """`DecoderLayer` with full attention to the memory by content and position."""

    def read(
        self, content: Tensor, query_position: QueryPosition, memory: Tokens, *, need_samples: bool
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Attend to the memory; see `DecoderLayer`. There are no samples: None."""
        return self.cross_attn(content, query_position, memory), None


def conditional_layers(
    *,
    ffn: FeedForward,
    embed_dim: int,
    num_heads: int,
    dropout: float,
    count: int,
    memory_padding: Literal["hidden", "visible"] = "hidden",
) -> list[nn.Module]:
    """Return `count` decoder layers, each with a copy of `ffn`; the first one adds positions in its cross-attention."""
    return [
        ConditionalDecoderLayer(
            self_attn=ConditionalSelfAttention(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
            cross_attn=ConditionalCrossAttention(
                embed_dim=embed_dim,
                num_heads=num_heads,
                dropout=dropout,
                first=i == 0,
                memory_padding=memory_padding,
            ),
            ffn=copy.deepcopy(ffn),
            embed_dim=embed_dim,
            dropout=dropout,
        )
        for i in range(count)
    ]
