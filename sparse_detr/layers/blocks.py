"""Multi-layer perceptrons."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them, such as the box head of DETR.

    Args:
        sizes: channels from the input to the output; `(256, 256, 4)` makes two layers.
    """

    def __init__(self, *, sizes: tuple[int, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.linears[0].weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class FeedForward(nn.Module):
    """Feed-forward network without the residual: W2 dropout(activation(W1 x)), then dropout.

    Args:
        embed_dim: C.
        feedforward_dim: channels in between.
        dropout: probability, after both layers.
        activation: ReLU if None.
    """

    def __init__(self, *, embed_dim: int, feedforward_dim: int, dropout: float, activation: nn.Module | None = None):
        super().__init__()
        self.activation = activation or nn.ReLU()
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(self.activation(self.linear1(x)))))


def copies(*, module: nn.Module, count: int) -> list[nn.Module]:
    """Return `count` independent copies of a module."""
    return [copy.deepcopy(module) for _ in range(count)]
