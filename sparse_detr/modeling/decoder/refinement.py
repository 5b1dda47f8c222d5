"""Where the next decoder layer looks: iterative bounding box refinement and its variants."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_detr.layers import inverse_sigmoid
from sparse_detr.modeling.heads import PredictionHead, Predictions


class NoRefinement(nn.Module):
    """Every layer starts from the queries' own reference (Deformable DETR, section 4.1)."""

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the reference of the next layer, and the one that its predictions are relative to.

        Args:
            head: of the layer that just ran.
            content: (B, Q, C), its output.
            reference: (B, Q, 2|4), its own reference.
            predictions: of its head.
            logit_eps: see `inverse_sigmoid`.
        """
        return reference, reference


class BoxRefinement(nn.Module):
    """Every layer starts from the boxes predicted before it, detached (Deformable DETR, section 4.2)."""

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the next reference twice; see `NoRefinement`."""
        boxes = predictions.boxes.detach()
        return boxes, boxes


class LookForwardTwice(nn.Module):
    """A layer's predictions also train the boxes that it started from (DINO, section 3.5; so does DAB-DETR's code).

    The next layer looks at a detached box and predicts relative to the same box with its gradient. The head reads the
    content before the decoder's norm here and after it for predictions, so a prediction is not the next reference.
    """

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the next reference, detached and not; see `NoRefinement`."""
        boxes = (head.box_embed(content) + inverse_sigmoid(reference, logit_eps)).sigmoid()
        return boxes.detach(), boxes
