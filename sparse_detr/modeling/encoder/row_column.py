"""The encoder with row-column decoupled attention, of all tokens to all tokens (Anchor DETR, section 3.3)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sparse_detr.layers import FeedForward, RowColumnAttention
from sparse_detr.modeling.encoder.deformable import EncoderOutput
from sparse_detr.modeling.encoder.full import check_all_tokens
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Tokens, TokenSelection


class RowColumnEncoderLayer(nn.Module):
    """Row-column decoupled self-attention, then a feed-forward network; post-norm.

    Args:
        self_attn: the attention.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the output of the attention.
    """

    def __init__(self, *, self_attn: RowColumnAttention, ffn: FeedForward, embed_dim: int, dropout: float):
        super().__init__()
        self.self_attn, self.ffn = self_attn, ffn
        self.self_attn_norm, self.ffn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the new content (B, N, C) of the tokens of one map with `axes`."""
        assert tokens.axes is not None
        cells = tokens.content.unflatten(1, tokens.pyramid.spatial_shapes[0])
        query_x, query_y = cells + tokens.axes.x[:, None], cells + tokens.axes.y[:, :, None]
        attended = self.self_attn(query_x.flatten(1, 2), query_y.flatten(1, 2), tokens)
        content = self.self_attn_norm(tokens.content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content))


class RowColumnEncoder(nn.Module):
    """Layers of row-column decoupled attention.

    Args:
        layers: the layers, first to last.
    """

    def __init__(self, *, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, tokens: Tokens, selection: TokenSelection, proposals: Proposals, *, scores: Tensor | None = None
    ) -> EncoderOutput:
        """Refine all tokens; see `DeformableEncoder`.

        Raises:
            ValueError: the selection leaves some tokens out.
        """
        check_all_tokens(selection, "row-column attention")
        outputs = []
        for layer in self.layers:
            tokens = replace(tokens, content=layer(tokens))
            outputs.append(tokens.content)
        return EncoderOutput(memory=tokens.content, layers=tuple(outputs))
