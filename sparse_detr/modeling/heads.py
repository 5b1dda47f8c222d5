"""Class and box prediction."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparse_detr.layers import MLP
from sparse_detr.modeling.classification import SigmoidFocal


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a head says.

    Args:
        logits: (B, Q, classes) before the sigmoid.
        box_logits: (B, Q, 4) cxcywh before the sigmoid.
    """

    logits: Tensor
    box_logits: Tensor

    @property
    def boxes(self) -> Tensor:
        """(B, Q, 4) cxcywh in [0, 1]."""
        return self.box_logits.sigmoid()


class PredictionHead(nn.Module):
    """A linear classifier and a three-layer box regressor relative to a reference.

    Args:
        embed_dim: C.
        num_classes: classes to tell apart.
        classification: what the logits mean; `SigmoidFocal` if None.
    """

    def __init__(self, *, embed_dim: int, num_classes: int, classification: SigmoidFocal | None = None):
        super().__init__()
        self.classification = classification or SigmoidFocal()
        self.class_embed = nn.Linear(embed_dim, self.classification.num_logits(num_classes))
        self.box_embed = MLP(sizes=(embed_dim, embed_dim, embed_dim, 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start every class at its prior and every box at its reference."""
        for layer in (self.class_embed, *self.box_embed.linears):
            layer.reset_parameters()
        self.classification.initialize(self.class_embed)
        nn.init.zeros_(self.box_embed.linears[-1].weight)
        nn.init.zeros_(self.box_embed.linears[-1].bias)

    def forward(self, x: Tensor, reference_logits: Tensor) -> Predictions:
        """Predict from (B, Q, C) and the logits of reference points (B, Q, 2) or reference boxes (B, Q, 4)."""
        delta = self.box_embed(x)
        if reference_logits.shape[-1] == 2:
            reference_logits = nn.functional.pad(reference_logits, (0, 2))
        return Predictions(logits=self.class_embed(x), box_logits=delta + reference_logits)


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a detector, all with the same weights at initialisation.

    Args:
        decoder: one for every decoder layer; the same module again and again where they are tied.
        proposals: for the encoder's proposals; None without them.
        encoder: one for every supervised encoder layer.
    """

    decoder: list[PredictionHead]
    proposals: PredictionHead | None
    encoder: list[PredictionHead]


def make_heads(
    *,
    embed_dim: int,
    num_classes: int,
    decoder_layers: int,
    encoder_layers: int = 0,
    tied: bool = False,
    proposals: bool = False,
    size_bias: float | None = None,
    classification: SigmoidFocal | None = None,
) -> Heads:
    """Return copies of one freshly initialised head.

    Args:
        decoder_layers: heads for the decoder.
        encoder_layers: heads for supervised encoder layers.
        tied: one head for all decoder layers.
        proposals: add a head for proposals; queries then come with a box size, and no size is needed as a start.
        size_bias: logit of the width and height that the first decoder head starts with, beside the reference's; None
            for 0 with proposals, else -2.
        classification: what the logits mean; `SigmoidFocal` if None.
    """
    head = PredictionHead(embed_dim=embed_dim, num_classes=num_classes, classification=classification)
    first = copy.deepcopy(head)
    if size_bias is None:
        size_bias = 0.0 if proposals else -2.0
    with torch.no_grad():
        first.box_embed.linears[-1].bias[2:] = size_bias
    others = [first if tied else copy.deepcopy(head) for _ in range(decoder_layers - 1)]
    return Heads(
        decoder=[first, *others],
        proposals=copy.deepcopy(head) if proposals else None,
        encoder=[copy.deepcopy(head) for _ in range(encoder_layers)],
    )
