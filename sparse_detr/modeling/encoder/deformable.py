"""The deformable encoder, which refines the selected tokens only (Deformable DETR, 4.1; Sparse DETR, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import DeformableAttention, FeedForward
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Pyramid, Tokens, TokenSelection


@dataclass(frozen=True, eq=False)
class EncoderOutput:
    """The encoded tokens.

    Args:
        memory: (B, N, C), every token; those that were not selected are unchanged.
        layers: (B, K, C) of every layer, the tokens that it refined.
    """

    memory: Tensor
    layers: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The tokens that an encoder layer refines.

    Args:
        content: (B, K, C).
        position: (B, K, C), added to the content of a token that attends.
        reference_points: (B, K, L, 2), the tokens' centres as (x, y) in [0, 1] of each padded level; without meaning
            for tokens that are no cells.
        valid: (B, K) bool, False on rows that only fill the batch.
        scores: (B, K), the scores that ranked the tokens; None for selectors without scores.
        any_valid: (K,) bool, True on rows that are valid in some image; None if all rows are.
    """

    content: Tensor
    position: Tensor
    reference_points: Tensor
    valid: Tensor
    scores: Tensor | None = None
    any_valid: Tensor | None = None


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention of some tokens over all tokens, then a feed-forward network; post-norm.

    Args:
        self_attn: the attention.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the output of the attention.
    """

    def __init__(self, *, self_attn: DeformableAttention, ffn: FeedForward, embed_dim: int, dropout: float):
        super().__init__()
        self.self_attn, self.ffn = self_attn, ffn
        self.self_attn_norm, self.ffn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, proposals: Proposals) -> Tensor:
        """Return the refined content of some tokens.

        Args:
            rows: the tokens.
            source: (B, N, C), all tokens, which the attention reads around the reference points.
            pyramid: geometry of the source.
            proposals: boxes of all tokens and their head, for layers that classify tokens.

        Returns:
            (B, K, C).
        """
        content = self.attend(rows, source, pyramid)
        return self.ffn_norm(content + self.ffn(content))

    def attend(self, rows: TokenRows, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Return (B, K, C), the content after the attention and its normalisation."""
        attended = self.self_attn(rows.content + rows.position, rows.reference_points, source, pyramid)
        return self.self_attn_norm(rows.content + self.dropout(attended))


class DeformableEncoder(nn.Module):
    """Layers that refine the selected tokens; the result of each layer is written back before the next one reads.

    Rows are taken out of the sequence again only where the selection changes from layer to layer.

    Args:
        layers: the layers, first to last.
        source: what the deformable attention of every layer reads: `updated`, the tokens after the layer before;
            `static`, the input tokens, as in the public implementation of Focus-DETR.
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
        """Refine the selected tokens.

        Args:
            tokens: all tokens.
            selection: the tokens that every layer refines.
            proposals: a box for every token, and the head that classifies it.
            scores: (B, N), the scores that ranked the tokens; None for selectors without scores.

        Raises:
            ValueError: the selection is for another number of layers, or the tokens are not the cells of maps.
        """
        if tokens.mask is not None:
            raise ValueError(
                "deformable attention reads maps, but this selector hands the encoder tokens that are no cells of one; "
                "choose a model with full attention"
            )
        selection.check_layers(len(self.layers))
        memory, outputs = tokens.content, []
        previous = rows = None
        for i, layer in enumerate(self.layers):
            kept = selection.at_layer(i)
            if rows is None or kept is not previous:
                rows = selected_rows(replace(tokens, content=memory), kept, scores)
            source = memory if self.source == "updated" else tokens.content
            rows = replace(rows, content=layer(rows, source, tokens.pyramid, proposals))
            memory, previous = kept.scatter(memory, rows.content), kept
            outputs.append(rows.content)
        return EncoderOutput(memory=memory, layers=tuple(outputs))


def selected_rows(tokens: Tokens, selection: TokenSelection, scores: Tensor | None) -> TokenRows:
    """Return the selected tokens, with their scores if there are (B, N) scores."""
    return TokenRows(
        content=selection.gather(tokens.content),
        position=selection.gather(tokens.position),
        reference_points=selection.gather(encoder_reference_points(tokens.pyramid, tokens.position.dtype)),
        valid=selection.valid,
        scores=None if scores is None else selection.gather(scores),
        any_valid=selection.any_valid,
    )


def encoder_reference_points(pyramid: Pyramid, dtype: torch.dtype) -> Tensor:
    """Return (B, N, L, 2): the centre of every token, as (x, y) in [0, 1] of each padded level."""
    return pyramid.centers(dtype)[:, :, None] * pyramid.valid_ratios(dtype)[:, None]
