"""Row-column decoupled attention: full attention to a map, one axis at a time (Anchor DETR, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.layers.attention import check_heads
from sparse_detr.structures import Tokens, map_size


class RowColumnAttention(nn.Module):
    """Attention whose weight of a cell is the weight of its column times the weight of its row.

    A query attends to the columns by one similarity and to the rows by another: the key of a column is the mean of its
    cells, and so is that of a row. So h + w weights of a query replace the h w of full attention.

    Args:
        embed_dim: C.
        num_heads: M, a divisor of C.
        mean_over: the cells in these means: the `valid` ones, or `all`, with padding, as in the public code.

    Raises:
        ValueError: `embed_dim` is not a multiple of `num_heads`.
    """

    def __init__(self, *, embed_dim: int, num_heads: int, mean_over: Literal["valid", "all"] = "valid"):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads, self.mean_over = num_heads, mean_over
        # of the query for columns, the query for rows, the key of a column, the key of a row, the value
        self.in_proj_weight = nn.Parameter(torch.empty(5 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_x: Tensor, query_y: Tensor, source: Tokens) -> Tensor:
        """Attend to tokens of one map with `axes`.

        Args:
            query_x: (B, Q, C), compared with the columns.
            query_y: (B, Q, C), compared with the rows.
            source: the tokens.

        Returns:
            (B, Q, C).
        """
        assert source.axes is not None
        shape = source.pyramid.spatial_shapes[0]
        cells = source.content.unflatten(1, shape)  # (B, h, w, C)
        padding_mask = source.pyramid.padding_mask.unflatten(1, shape)
        hidden_x, hidden_y = (padding_mask[:, 0], padding_mask[:, :, 0]) if source.has_padding else (None, None)
        mean_x, mean_y = _means(cells, padding_mask if source.has_padding and self.mean_over == "valid" else None)
        key_x, key_y = mean_x + source.axes.x, mean_y + source.axes.y
        # the projection of a mean is the mean of the projections, for h + w keys instead of h w
        inputs = zip(
            (query_x, query_y, key_x, key_y, source.content),
            self.in_proj_weight.chunk(5),
            self.in_proj_bias.chunk(5),
            strict=True,
        )
        query_x, query_y, key_x, key_y, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)) for x, weight, bias in inputs
        )
        attended = weighted_sum(
            _attention_weights(query_x, key_x, hidden_x),
            _attention_weights(query_y, key_y, hidden_y),
            value.unflatten(1, shape).permute(0, 3, 4, 1, 2),
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def _means(cells: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the means of columns (B, w, C) and rows (B, h, C) of a map (B, h, w, C), without `ignored` (B, h, w) ones.

    Ignored cells lie at the right and at the bottom; the mean of a column or row without other cells is 0.
    """
    if ignored is None:
        return cells.mean(1), cells.mean(2)
    cells = cells.masked_fill(ignored[..., None], 0)
    height, width = (~ignored[:, :, 0]).sum(1), (~ignored[:, 0]).sum(1)
    return cells.sum(1) / height[:, None, None], cells.sum(2) / width[:, None, None]


def _attention_weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """Return the weights (B, M, Q, S) of keys (B, S, M, D) for queries (B, Q, M, D); `hidden` (B, S) ones have 0."""
    similarity = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
    if hidden is not None:
        similarity = similarity.masked_fill(hidden[:, None, None], float("-inf"))
    return similarity.softmax(-1)


def weighted_sum(weights_x: Tensor, weights_y: Tensor, value: Tensor) -> Tensor:
    """Return the sum over y and x of weights_y[q, y] weights_x[q, x] value[y, x].

    The sum over the first axis takes Q h w D multiplications, whichever axis it is; what it leaves is to be stored. So
    the longer axis comes first. In an export with open sizes, which cannot compare them, the columns do.

    Args:
        weights_x: (B, M, Q, w).
        weights_y: (B, M, Q, h).
        value: (B, M, D, h, w).

    Returns:
        (B, M, Q, D).
    """
    channels, (height, width) = value.shape[2], map_size(value)
    if isinstance(height, int) and isinstance(width, int) and height > width:
        return weighted_sum(weights_y, weights_x, value.transpose(-1, -2))
    # concatenated, not flattened: an export cannot flatten D with an h that is open
    columns = torch.cat(value.unbind(2), 2)  # (B, M, D h, w)
    rows = (weights_x @ columns.transpose(2, 3)).unflatten(-1, (channels, height))  # (B, M, Q, D, h)
    return (rows @ weights_y[..., None]).squeeze(-1)
