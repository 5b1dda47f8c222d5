"""Full multi-head attention, with masks that are broadcast over the heads instead of repeated for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.structures import Tokens


def attention_mask(valid: Tensor | None, keep: Tensor | None = None) -> Tensor | None:
    """Make the mask of `multi_head_attention`; None if every query may attend to every key.

    Args:
        valid: (B, S) bool, False on keys that no query may attend to; None if there are no such keys.
        keep: (Q, S) bool, True where the query of the row may attend to the key of the column; None if all may.

    Returns:
        (B, 1, Q or 1, S) or (Q, S) bool, True where a query may attend to a key.
    """
    if valid is None:
        return keep
    mask = valid[:, None, None]
    return mask if keep is None else mask & keep


def token_mask(tokens: Tokens) -> Tensor | None:
    """Make the mask for keys that are tokens: no query may attend to padding."""
    return attention_mask(~tokens.padding_mask if tokens.has_padding else None)


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raise `ValueError` unless the channels can be divided among the heads of an attention."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, mask: Tensor | None, dropout: float
) -> Tensor:
    """Return softmax(Q K^T / sqrt(D)) V of every head.

    Args:
        query: (B, Q, M D).
        key: (B, S, M D).
        value: (B, S, M D'), where D' may differ from D.
        num_heads: M.
        mask: see `attention_mask`.
        dropout: probability, on the attention weights.

    Returns:
        (B, Q, M D').
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


class PackedAttention(nn.Module):
    """The parameters of `nn.MultiheadAttention`, with one matrix for the projections of queries, keys and values.

    Unlike PyTorch's layer, it does not repeat a mask as float for every head.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        dropout: probability, on the attention weights.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, dropout: float):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.zeros_(self.out_proj.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the three input projections together, Xavier-uniform."""
        nn.init.xavier_uniform_(self.in_proj_weight)


class SelfAttention(PackedAttention):
    """Self-attention with positions added to queries and keys, but not to values (DETR, appendix A.3).

    Args:
        embed_dim, num_heads, dropout: see `PackedAttention`.
    """

    def forward(self, content: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, Q, C) from (B, Q, C) `content` and `position`; for `mask` see `attention_mask`."""
        embed_dim = content.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query, key = F.linear(content + position, weight[: 2 * embed_dim], bias[: 2 * embed_dim]).chunk(2, -1)
        value = F.linear(content, weight[2 * embed_dim :], bias[2 * embed_dim :])
        return _attend(self, query, key, value, mask)


class CrossAttention(PackedAttention):
    """Attention of queries to other tokens (DETR, appendix A.3).

    Args:
        embed_dim, num_heads, dropout: see `PackedAttention`.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C), content plus position.
            key: (B, S, C), content plus position.
            value: (B, S, C), content.
            mask: see `attention_mask`.

        Returns:
            (B, Q, C).
        """
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        query, key, value = (F.linear(x, weight, bias) for x, weight, bias in projections)
        return _attend(self, query, key, value, mask)


def _attend(layer: PackedAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, Q, C) from projected queries (B, Q, C), keys and values (B, S, C)."""
    dropout = layer.dropout if layer.training else 0.0
    attended = multi_head_attention(query, key, value, num_heads=layer.num_heads, mask=mask, dropout=dropout)
    return layer.out_proj(attended)
