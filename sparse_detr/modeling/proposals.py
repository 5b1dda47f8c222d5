"""A box for every token, and what scores and refines it (Deformable DETR, section 4.2, two-stage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import PredictionHead, Predictions
from sparse_detr.structures import PredictionGroup, Pyramid


class ProposalProjection(nn.Module):
    """Linear layer and layer normalisation in front of whatever scores tokens: proposals and scoring networks.

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Project (B, N, C), with zeros in place of the tokens that are not `valid` (B, N) bool."""
        return self.norm(self.linear(tokens.masked_fill(~valid[..., None], 0)))


@dataclass(frozen=True, eq=False)
class Proposals:
    """One box a token, and the parts that read tokens and boxes.

    Args:
        box_logits: (B, N, 4) cxcywh before the sigmoid.
        valid: (B, N) bool, False where the token proposes nothing: on padding and, in the public implementation, on
            the border.
        keep: (B, N) bool, False where the token must not become a query; None where every token may.
        projection: what scorers and the head read tokens through; None where nothing does.
        head: class and box head of the proposals; None where nothing needs it.
    """

    box_logits: Tensor
    valid: Tensor
    keep: Tensor | None
    projection: ProposalProjection | None = None
    head: PredictionHead | None = None

    def project(self, tokens: Tensor) -> Tensor:
        """Return (B, N, C) tokens as the head and the scorers read them."""
        if self.projection is None:
            raise ValueError("the model has no proposal projection, which this part reads tokens through; add one")
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
        """Return (B, K, classes) of (B, K, C), in the precision of the weights: half precision is full of ties."""
        classify = self._head.class_embed
        with torch.autocast(projected.device.type, enabled=False):
            return classify(projected.to(classify.weight.dtype))

    @property
    def _head(self) -> PredictionHead:
        if self.head is None:
            raise ValueError("the model has no proposal head, which says what a token may be; add one")
        return self.head

    def group(self, predictions: Predictions, valid: Tensor | None, *, class_agnostic: bool = False) -> PredictionGroup:
        """Return predictions as the supervised group `proposals`."""
        return PredictionGroup(
            name="proposals",
            suffix="_enc",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=valid,
            class_agnostic=class_agnostic,
        )


class ProposalGenerator(nn.Module):
    """Boxes around every token's centre, 5 % of the image wide on the finest level and twice as wide on each next.

    Args:
        border: what becomes of boxes with a coordinate outside of (0.01, 0.99): `clamped` moves it to the nearer end;
            `dropped` is the public implementation, which ignores the token, gives it the box (1, 1, 1, 1) and still
            lets it and padding become queries.
    """

    min_value = 0.01
    # Stands for the public implementation's infinity: the sigmoid is 1 and has no gradient, and nothing becomes NaN.
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
        """Propose boxes beside features of `dtype`, in its `geometry_dtype`."""
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
    """Return the rows (B, K, C) of (B, N, C), by (B, K) long."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
