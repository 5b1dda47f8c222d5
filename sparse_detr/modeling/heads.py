"""Class and box heads, and the proposals of the encoder: a box for every token (Deformable DETR, section 4.2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import MLP
from sparse_detr.modeling.classification import Classification, SigmoidFocal
from sparse_detr.structures import PredictionGroup, Pyramid

BoxStart = Literal["reference", "anywhere"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The output of a head.

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
        num_classes: number of classes.
        classification: what the logits mean; `SigmoidFocal` if None.
        box_start: where boxes start: at their `reference`, or `anywhere`, with the initial weights of PyTorch, as in
            DETR, whose boxes have no reference.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_classes: int,
        classification: Classification | None = None,
        box_start: BoxStart = "reference",
    ):
        super().__init__()
        self.classification, self.box_start = classification or SigmoidFocal(), box_start
        self.class_embed = nn.Linear(embed_dim, self.classification.num_logits(num_classes))
        self.box_embed = MLP(sizes=(embed_dim, embed_dim, embed_dim, 4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: every class starts at its prior, every box as `box_start` says."""
        for layer in (self.class_embed, *self.box_embed.linears):
            layer.reset_parameters()
        self.classification.initialize(self.class_embed)
        if self.box_start == "reference":
            nn.init.zeros_(self.box_embed.linears[-1].weight)
            nn.init.zeros_(self.box_embed.linears[-1].bias)

    def forward(self, x: Tensor, reference_logits: Tensor) -> Predictions:
        """Predict from features (B, Q, C) and the logits of reference points (B, Q, 2) or reference boxes (B, Q, 4)."""
        box_logits = self.box_logits(x, reference_logits)
        return Predictions(logits=self.class_embed(x), box_logits=box_logits)

    def box_logits(self, x: Tensor, reference_logits: Tensor) -> Tensor:
        """Return (B, Q, 4), the box logits alone; see `forward`."""
        delta = self.box_embed(x)
        if reference_logits.shape[-1] == 2:
            reference_logits = nn.functional.pad(reference_logits, (0, 2))
        return delta + reference_logits

    def class_logits(self, x: Tensor) -> Tensor:
        """Return (B, Q, classes) logits to rank by, in the dtype of the weights: half precision gives many ties."""
        with torch.autocast(x.device.type, enabled=False):
            return self.class_embed(x.to(self.class_embed.weight.dtype))


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a detector, all with the same weights at initialisation.

    Args:
        decoder: one for every decoder layer; tied heads are the same module for every layer.
        proposals: the head of the proposals; None for models without proposals.
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
    proposals_tied: bool = False,
    size_bias: float | None = None,
    classification: Classification | None = None,
    box_start: BoxStart = "reference",
) -> Heads:
    """Return copies of one freshly initialised head.

    Args:
        decoder_layers: number of heads for the decoder.
        encoder_layers: number of heads for supervised encoder layers.
        tied: all decoder layers share one head.
        proposals: add a head for proposals; queries then come with the size of a box.
        size_bias: added to the initial bias of the first decoder head for the logits of width and height; None means 0
            with proposals, else -2.
        proposals_tied: proposals and the first decoder layer share one head, which has two names in the state dict.
        classification: what the logits mean; `SigmoidFocal` if None.
        box_start: see `PredictionHead`.
    """
    head = PredictionHead(
        embed_dim=embed_dim, num_classes=num_classes, classification=classification, box_start=box_start
    )
    first = copy.deepcopy(head)
    if size_bias is None:
        size_bias = 0.0 if proposals else -2.0
    with torch.no_grad():
        first.box_embed.linears[-1].bias[2:] += size_bias
    own = first if proposals_tied else copy.deepcopy(head)
    others = [first if tied else copy.deepcopy(head) for _ in range(decoder_layers - 1)]
    return Heads(
        decoder=[first, *others],
        proposals=own if proposals else None,
        encoder=[copy.deepcopy(head) for _ in range(encoder_layers)],
    )


class ProposalProjection(nn.Module):
    """Linear layer and layer normalisation between the tokens and what scores them: proposal head, scoring network.

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Project tokens (B, N, C); tokens that are not `valid` (B, N) bool count as zeros."""
        return self.norm(self.linear(tokens.masked_fill(~valid[..., None], 0)))


@dataclass(frozen=True, eq=False)
class Proposals:
    """One box for every token, with the layers that read tokens and boxes.

    Args:
        box_logits: (B, N, 4) cxcywh before the sigmoid.
        valid: (B, N) bool, False where the token proposes nothing: on padding and, in the public implementation, on
            the border.
        keep: (B, N) bool, False where the token must not become a query; None where every token may.
        projection: a layer between the tokens and the scorer and head; None for models without these.
        head: class and box head of the proposals; None for models without such a head.
    """

    box_logits: Tensor
    valid: Tensor
    keep: Tensor | None
    projection: ProposalProjection | None = None
    head: PredictionHead | None = None

    def project(self, tokens: Tensor) -> Tensor:
        """Return (B, N, C) tokens after the projection, the input of the head and of scorers."""
        if self.projection is None:
            raise ValueError("the model has no proposal projection, and a part needs one to read tokens; add one")
        return self.projection(tokens, self.valid)

    def predict(self, projected: Tensor, rows: Tensor | None = None) -> Predictions:
        """Return the head's predictions of projected tokens.

        Args:
            projected: (B, N, C); or (B, K, C), of the tokens in `rows`.
            rows: (B, K) long; None for all tokens.
        """
        box_logits = self.box_logits if rows is None else take_rows(self.box_logits, rows)
        return self._head(projected, box_logits)

    def class_logits(self, projected: Tensor) -> Tensor:
        """Return (B, K, classes) logits of (B, K, C) to rank by; see `PredictionHead.class_logits`."""
        return self._head.class_logits(projected)

    @property
    def _head(self) -> PredictionHead:
        if self.head is None:
            raise ValueError("the model has no proposal head, and a part needs one to classify tokens; add one")
        return self.head

    def group(self, predictions: Predictions, valid: Tensor | None, *, class_agnostic: bool = False) -> PredictionGroup:
        """Make the supervised group `proposals` of predictions."""
        return PredictionGroup(
            name="proposals",
            suffix="_enc",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=valid,
            class_agnostic=class_agnostic,
        )


class ProposalGenerator(nn.Module):
    """A box around the centre of every token: 5 % of the image wide on the finest level, twice as wide on each next.

    Args:
        border: how to treat boxes with a coordinate outside of (0.01, 0.99): `clamped` moves the coordinate to the
            nearer end; `dropped`, as the public implementation, reads the token as zeros and gives it the box (1, 1, 1,
            1), but lets it and padding become queries.
    """

    min_value = 0.01
    # Replaces the infinity of the public implementation: the sigmoid is 1 without gradient too, but nothing is NaN.
    dropped_logit = 1e4

    def __init__(self, *, border: Literal["clamped", "dropped"] = "clamped"):
        super().__init__()
        self.border = border

    def forward(
        self,
        pyramid: Pyramid,
        dtype: torch.dtype,
        *,
        projection: ProposalProjection | None = None,
        head: PredictionHead | None = None,
    ) -> Proposals:
        """Return the proposals of a batch, with boxes in the `geometry_dtype` of `dtype`, the dtype of the features."""
        centers = pyramid.centers(dtype)
        size = 0.05 * 2.0 ** pyramid.cells[:, :1].to(centers.dtype)
        boxes = torch.cat([centers, size.expand_as(centers)], -1)
        valid = ~pyramid.padding_mask
        if self.border == "clamped":
            logits = boxes.clamp(self.min_value, 1 - self.min_value).logit()
            return Proposals(logits, valid, valid if pyramid.has_padding else None, projection, head)
        valid = valid & ((boxes > self.min_value) & (boxes < 1 - self.min_value)).all(-1)
        logits = boxes.logit().masked_fill(~valid[..., None], self.dropped_logit)
        return Proposals(logits, valid, None, projection, head)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (B, K, C) of `x` (B, N, C) with the indices `rows` (B, K) long."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
