"""Attention of everything to everything at one scale: encoder, decoder layers and query positions of DAB-DETR.

Liu et al., ICLR 2022, on top of Conditional DETR (Meng et al., ICCV 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import MLP, AttentionSamples, FeedForward, multi_head_attention, visible_keys
from sparse_detr.modeling.decoder import DecoderLayer, QueryMask
from sparse_detr.modeling.encoder import Encoder, EncoderLayer, EncoderOutput, TokenRows, take_rows
from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries import Queries
from sparse_detr.modeling.query_position import QueryPosition, embed_rows_first
from sparse_detr.structures import AllTokens, Pyramid, Tokens, TokenSelection


class DenseEncoderLayer(EncoderLayer):
    """An `EncoderLayer` whose `self_attn` is dense: tokens attend to each other, wherever they are."""

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, head: PredictionHead | None) -> Tensor:
        """Refine all tokens; see `EncoderLayer`. Only `rows` and padding matter."""
        attended = self.self_attn(rows.content, rows.position, _real(pyramid))
        content = self.self_attn_norm(rows.content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content))


class DenseEncoder(Encoder):
    """Layers over all tokens, whose positions every layer multiplies by a function of the content.

    Args:
        layers: the layers, first to last, which share that function.
        embed_dim: C.
    """

    def __init__(self, *, layers: list[nn.Module], embed_dim: int):
        super().__init__(layers=layers)
        self.position_scale = MLP(sizes=(embed_dim, embed_dim, embed_dim))

    def forward(
        self,
        tokens: Tokens,
        selection: TokenSelection,
        *,
        scores: Tensor | None = None,
        head: PredictionHead | None = None,
    ) -> EncoderOutput:
        """Refine every token; see `Encoder`.

        Raises:
            ValueError: some tokens are not selected.
        """
        if not isinstance(selection, AllTokens):
            raise ValueError(
                f"dense attention refines every token, but {type(selection).__name__} leaves some out; keep all tokens "
                "or choose a model with a deformable encoder"
            )
        rows, outputs = take_rows(tokens, selection, scores), []
        for layer in self.layers:
            located = replace(rows, position=tokens.position * self.position_scale(rows.content))
            rows = replace(rows, content=layer(located, rows.content, tokens.pyramid, head))
            outputs.append(rows.content)
        return EncoderOutput(memory=rows.content, layers=tuple(outputs))


class ConditionalSelfAttention(nn.Module):
    """Self-attention of queries with projections of their own for content and position.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        dropout: probability, on the attention weights.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        _check_heads(embed_dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content_proj, self.query_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.key_content_proj, self.key_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.value_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, content: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, Q, C) from (B, Q, C) `content` and `position`; for `visible` see `visible_keys`."""
        attended = multi_head_attention(
            self.query_content_proj(content) + self.query_pos_proj(position),
            self.key_content_proj(content) + self.key_pos_proj(position),
            self.value_proj(content),
            num_heads=self.num_heads,
            visible=visible,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended)


class ConditionalCrossAttention(nn.Module):
    """Attention of queries to the memory by content and, side by side with it, by place.

    In every head the query is its content next to its `spatial` embedding, the key is its content next to its
    position, so that their product is the sum of a content and a spatial similarity (DAB-DETR, section 4.2).

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        dropout: probability, on the attention weights.
        first: the content of the first layer's queries says nothing yet: add positions to it and to the memory's.
        memory_padding: `hidden` from the queries, or `visible` to them, as in detrex.
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
        _check_heads(embed_dim, num_heads)
        self.num_heads, self.dropout, self.memory_padding = num_heads, dropout, memory_padding
        self.query_content_proj = nn.Linear(embed_dim, embed_dim)
        self.query_pos_proj = nn.Linear(embed_dim, embed_dim) if first else None
        self.query_spatial_proj = nn.Linear(embed_dim, embed_dim)
        self.key_content_proj, self.key_pos_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.value_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, content: Tensor, at: QueryPosition, memory: Tokens) -> Tensor:
        """(B, Q, C) from the queries' `content` (B, Q, C), where they are, and what they read."""
        assert at.spatial is not None
        query, key = self.query_content_proj(content), self.key_content_proj(memory.content)
        spatial_query, spatial_key = self.query_spatial_proj(at.spatial), self.key_pos_proj(memory.position)
        if self.query_pos_proj is not None:
            query, key = query + self.query_pos_proj(at.position), key + spatial_key
        attended = multi_head_attention(
            self._side_by_side(query, spatial_query),
            self._side_by_side(key, spatial_key),
            self.value_proj(memory.content),
            num_heads=self.num_heads,
            visible=_real(memory.pyramid) if self.memory_padding == "hidden" else None,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended)

    def _side_by_side(self, content: Tensor, place: Tensor) -> Tensor:
        """(B, Q, 2C) from twice (B, Q, C), head by head."""
        return torch.cat([x.unflatten(-1, (self.num_heads, -1)) for x in (content, place)], -1).flatten(-2)


class ConditionalDecoderLayer(DecoderLayer):
    """A `DecoderLayer` that attends to all of the memory, by content and place."""

    def forward(
        self, content: Tensor, at: QueryPosition, memory: Tokens, mask: QueryMask, *, need_samples: bool = False
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Update the queries' content (B, Q, C); see `DecoderLayer`. Dense attention samples nothing."""
        content = self.self_attn_norm(content + self.dropout(self.self_attn(content, at.position, mask.visible)))
        content = self.cross_attn_norm(content + self.dropout(self.cross_attn(content, at, memory)))
        return self.ffn_norm(content + self.ffn(content)), None


def conditional_layers(
    *,
    ffn: FeedForward,
    embed_dim: int,
    num_heads: int,
    dropout: float,
    count: int,
    memory_padding: Literal["hidden", "visible"] = "hidden",
) -> list[nn.Module]:
    """`count` decoder layers, each with a copy of `ffn`; the first adds positions in its cross-attention."""
    return [
        ConditionalDecoderLayer(
            self_attn=ConditionalSelfAttention(  # type: ignore[arg-type]
                embed_dim=embed_dim, num_heads=num_heads, dropout=dropout
            ),
            cross_attn=ConditionalCrossAttention(  # type: ignore[arg-type]
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


class ModulatedBoxPosition(nn.Module):
    """An MLP of the sine embedding of the box, and the embedding of its centre for dense attention.

    The latter is multiplied by learned factors, and its row and column halves by the height and width that the content
    asks for over those of the box (DAB-DETR, sections 4.2 and 4.4). A side below a ten-thousandth of the image counts
    as a ten-thousandth, so that the quotient stays within what half precision can hold; public code divides by any.

    Args:
        embed_dim: C, a multiple of 4.
        scale: (content, layer) -> the factors, such as `ContentScale` and `LayerScale`; None for none.
    """

    min_size = 1e-4

    def __init__(self, *, embed_dim: int, scale: nn.Module | None):
        super().__init__()
        self.num_features = embed_dim // 2
        self.mlp = MLP(sizes=(2 * embed_dim, embed_dim, embed_dim))
        self.scale = scale
        self.size = MLP(sizes=(embed_dim, embed_dim, 2))

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Embed the boxes (B, Q, 4) of one layer; see `GivenPosition`."""
        embedding = embed_rows_first(reference_points, self.num_features, dtype=self.mlp.dtype)
        spatial = embedding[..., : 2 * self.num_features]
        if self.scale is not None:
            spatial = spatial * self.scale(content, layer)
        factors = self.size(content).sigmoid() / reference_points[..., 2:].clamp(min=self.min_size)
        factors = factors.flip(-1).repeat_interleave(self.num_features, -1)  # (w, h) -> rows, columns
        spatial = (spatial * factors).to(self.mlp.dtype)
        return QueryPosition(position=self.mlp(embedding), reference_points=reference_points, spatial=spatial)


class NoAttentionMap(nn.Module):
    """Dense attention samples no points that could be counted."""

    def forward(self, samples: Sequence[AttentionSamples] | None, pyramid: Pyramid, valid: Tensor | None) -> None:
        return None


def _check_heads(embed_dim: int, num_heads: int) -> None:
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")


def _real(pyramid: Pyramid) -> Tensor | None:
    """What `multi_head_attention` may see of the tokens; None for all of them."""
    return visible_keys(pyramid.padding_mask if pyramid.has_padding else None, None)
