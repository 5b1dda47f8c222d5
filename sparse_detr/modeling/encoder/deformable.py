"""The deformable encoder, which refines the selected tokens only (Deformable DETR, 4.1; Sparse DETR, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Pyramid, Tokens, TokenSelection


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """The encoded tokens.

    Args:
        memory: (B, N, C), every token; those that were not selected are as they came.
        layers: (B, K, C) of every layer, the tokens that it refined.
    """

    memory: Tensor
    layers: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """What an encoder layer sees of the tokens that it refines.

    Args:
        content: (B, K, C).
        position: (B, K, C), added wherever a token attends.
        reference_points: (B, K, L, 2), the tokens' centres as (x, y) in [0, 1] of each padded level.
        valid: (B, K) bool, False on rows that only fill the batch.
        scores: (B, K), what the tokens were ranked by; None where nothing was scored.
        used: (K,) bool, False on rows that fill the batch in every image; None where there are no such rows.
    """

    content: Tensor
    position: Tensor
    reference_points: Tensor
    valid: Tensor
    scores: Tensor | None = None
    used: Tensor | None = None


class DeformableEncoderLayer(nn.Module):
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

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, proposals: Proposals) -> Tensor:
        """Refine some tokens.

        Args:
            rows: the tokens.
            source: (B, N, C), all tokens, to read around the reference points.
            pyramid: geometry of the source.
            proposals: of all tokens, for layers that ask what a token may be.

        Returns:
            Their new content, (B, K, C).
        """
        attended = self.self_attn(rows.content + rows.position, rows.reference_points, source, pyramid)
        content = self.self_attn_norm(rows.content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content))


class DeformableEncoder(nn.Module):
    """Layers that refine the selected tokens, each written back before the next one reads.

    Rows are taken out of the sequence where the selection changes, and else go on from layer to layer.

    Args:
        layers: the layers, first to last.
        source: what every layer's deformable attention reads: `updated`, the tokens as the layer before left them;
            `static`, the tokens as they came, as in the public implementation of Focus-DETR.
    """

    def __init__(self, *, layers: list[nn.Module], source: Literal["updated", "static"] = "updated"):
        super().__init__()
        self.layers, self.source = nn.ModuleList(layers), source

    def forward(
        self,
        tokens: Tokens,
        selection: TokenSelection,
        proposals: Proposals,
        *,
        scores: Tensor | None = None,
    ) -> EncoderOutput:
        """Refine tokens.

        Args:
            tokens: all tokens.
            selection: those that every layer refines.
            proposals: a box for every token, and what says which object it may be.
            scores: (B, N), what the tokens were ranked by; None where nothing was scored.

        Raises:
            ValueError: the selection is for another number of layers.
        """
        selection.check_layers(len(self.layers))
        memory, outputs = tokens.content, []
        before = rows = None
        for i, layer in enumerate(self.layers):
            kept = selection.at_layer(i)
            if rows is None or kept is not before:
                rows = take_rows(replace(tokens, content=memory), kept, scores)
            source = memory if self.source == "updated" else tokens.content
            rows = replace(rows, content=layer(rows, source, tokens.pyramid, proposals))
            memory, before = kept.scatter(memory, rows.content), kept
            outputs.append(rows.content)
        return EncoderOutput(memory=memory, layers=tuple(outputs))


def take_rows(tokens: Tokens, selection: TokenSelection, scores: Tensor | None) -> TokenRows:
    """Return the selected tokens, with their (B, N) scores if there are any."""
    return TokenRows(
        content=selection.gather(tokens.content),
        position=selection.gather(tokens.position),
        reference_points=selection.gather(encoder_reference_points(tokens.pyramid, tokens.position.dtype)),
        valid=selection.valid,
        scores=None if scores is None else selection.gather(scores),
        used=selection.used,
    )


def encoder_reference_points(pyramid: Pyramid, dtype: torch.dtype) -> Tensor:
    """Return (B, N, L, 2): the centre of every token, as (x, y) in [0, 1] of each padded level."""
    return pyramid.centers(dtype)[:, :, None] * pyramid.valid_ratios(dtype)[:, None]
