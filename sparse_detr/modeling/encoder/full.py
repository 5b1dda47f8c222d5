"""The encoder with full attention, of all tokens to all tokens (DETR, section 3.2; DAB-DETR; Conditional DETR)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sparse_detr.layers import FeedForward, token_mask
from sparse_detr.modeling.encoder.deformable import EncoderOutput, TokenRows, selected_rows
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import AllTokens, Tokens, TokenSelection


class FullAttentionEncoderLayer(nn.Module):
    """Full self-attention, then a feed-forward network; post-norm.

    Args:
        self_attn: the attention: (content, position, mask) -> content.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the output of the attention.
    """

    def __init__(self, *, self_attn: nn.Module, ffn: FeedForward, embed_dim: int, dropout: float):
        super().__init__()
        self.self_attn, self.ffn = self_attn, ffn
        self.self_attn_norm, self.ffn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: TokenRows | Tokens, mask: Tensor | None) -> Tensor:
        """Return the new content (B, N, C) of all tokens; for `mask` see `attention_mask`."""
        attended = self.self_attn(rows.content, rows.position, mask)
        content = self.self_attn_norm(rows.content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content))


class FullAttentionEncoder(nn.Module):
    """Layers of full attention.

    Args:
        layers: the layers, first to last.
        position_scale: content (B, N, C) -> factors (B, N, C) of the positions, the same module in every layer, as in
            DAB-DETR; None to use the positions as they are, as in DETR.
    """

    def __init__(self, *, layers: list[nn.Module], position_scale: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.position_scale = position_scale

    def forward(
        self,
        tokens: Tokens,
        selection: TokenSelection,
        proposals: Proposals,
        *,
        scores: Tensor | None = None,
    ) -> EncoderOutput:
        """Refine all tokens; see `DeformableEncoder`.

        Raises:
            ValueError: the selection leaves some tokens out.
        """
        check_all_tokens(selection, "full attention")
        mask = token_mask(tokens)
        rows, outputs = selected_rows(tokens, selection, scores), []
        for layer in self.layers:
            if self.position_scale is not None:
                rows = replace(rows, position=tokens.position * self.position_scale(rows.content))
            rows = replace(rows, content=layer(rows, mask))
            outputs.append(rows.content)
        return EncoderOutput(memory=rows.content, layers=tuple(outputs))


def check_all_tokens(selection: TokenSelection, attention: str) -> None:
    """Raise `ValueError` if the selection leaves some tokens out; `attention` names the kind that refines them all."""
    if not isinstance(selection, AllTokens):
        raise ValueError(
            f"{attention} refines every token, but {type(selection).__name__} leaves some out; keep all tokens "
            "or choose a model with a deformable encoder"
        )
