"""The decoder: layers over queries and memory, where their positions come from, and how boxes are refined.

Deformable DETR, section 4.1; `Decoder` runs layers of every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_detr.layers import (
    AttentionSamples,
    FeedForward,
    MultiScaleDeformableAttention,
    SelfAttention,
    attention_mask,
    inverse_sigmoid,
)
from sparse_detr.modeling.heads import PredictionHead, Predictions
from sparse_detr.structures import Pyramid, Queries, Tokens


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """What the decoder says.

    Args:
        predictions: of every layer, first to last.
        samples: of every layer's cross-attention; None unless asked for, and where attention is full.
    """

    predictions: tuple[Predictions, ...]
    samples: tuple[AttentionSamples, ...] | None

    def split(self, count: int) -> tuple[DecoderOutput, DecoderOutput]:
        """Return the outputs of the first `count` queries, and of the others."""
        return self._rows(slice(None, count)), self._rows(slice(count, None))

    def _rows(self, rows: slice) -> DecoderOutput:
        predictions = [Predictions(layer.logits[:, rows], layer.box_logits[:, rows]) for layer in self.predictions]
        if self.samples is None:
            return DecoderOutput(tuple(predictions), None)
        samples = [AttentionSamples(layer.locations[:, rows], layer.weights[:, rows]) for layer in self.samples]
        return DecoderOutput(tuple(predictions), tuple(samples))


@dataclass(frozen=True, eq=False)
class QueryPosition:
    """The embedding and the reference of every query.

    Args:
        position: (B, Q, C), added to the content wherever a query attends.
        reference_points: (B, Q, 2|4), where it reads the memory, in [0, 1] of the unpadded image.
        spatial: (B, Q, C), what full attention compares with the positions of the memory; None for deformable
            attention.
    """

    position: Tensor
    reference_points: Tensor
    spatial: Tensor | None = None


class GivenPosition(nn.Module):
    """The embedding that the queries came with, in every layer (Deformable DETR, section 4.1)."""

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Embed the queries of one layer.

        Args:
            queries: what the decoder started from.
            reference_points: (B, Q, 2|4) of this layer.
            content: (B, Q, C) of this layer, which in the first one holds nothing of the image yet.
            pyramid: geometry of the memory.
            layer: number of the decoder layer, from 0.
        """
        assert queries.position is not None
        return QueryPosition(position=queries.position, reference_points=reference_points)


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the memory, a feed-forward network; post-norm.

    Args:
        self_attn: the queries' attention to each other.
        cross_attn: their deformable attention to the memory.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on either attention's output.
    """

    def __init__(
        self,
        *,
        self_attn: SelfAttention,
        cross_attn: MultiScaleDeformableAttention,
        ffn: FeedForward,
        embed_dim: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attn, self.cross_attn, self.ffn = self_attn, cross_attn, ffn
        self.self_attn_norm, self.cross_attn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, content: Tensor, at: QueryPosition, memory: Tokens, mask: Tensor | None, *, need_samples: bool = False
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Update the queries' content.

        Args:
            content: (B, Q, C).
            at: where the queries are.
            memory: what they read.
            mask: which queries attend to which, see `attention_mask`.
            need_samples: return the samples of the cross-attention, which its fastest form does not keep.

        Returns:
            The new content, and the samples or None.
        """
        attended = self.self_attn(content, at.position, mask)
        content = self.self_attn_norm(content + self.dropout(attended))
        query, points = content + at.position, on_padded_levels(at.reference_points, memory.pyramid)
        if need_samples:
            samples = self.cross_attn.sample(query, points, memory.pyramid)
            attended = self.cross_attn.read(memory.content, samples, memory.pyramid)
        else:
            samples = None
            attended = self.cross_attn(query, points, memory.content, memory.pyramid)
        content = self.cross_attn_norm(content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content)), samples


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


class Decoder(nn.Module):
    """Layers that each predict boxes around a reference, which a refinement moves on from layer to layer.

    Args:
        layers: the layers, first to last.
        query_position: the position embedding of the queries at their reference.
        refinement: the next layer's reference.
        norm: of what the heads see, but not of what the next layer and the refinement see; None for none.
        logit_eps: see `inverse_sigmoid`.
    """

    def __init__(
        self,
        *,
        layers: list[nn.Module],
        query_position: nn.Module,
        refinement: nn.Module,
        norm: nn.Module | None = None,
        logit_eps: float = 1e-5,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.query_position, self.refinement = query_position, refinement
        self.norm = norm or nn.Identity()
        self.logit_eps = logit_eps

    def forward(
        self,
        queries: Queries,
        memory: Tokens,
        heads: Sequence[PredictionHead] | nn.ModuleList,
        *,
        need_samples: bool = False,
    ) -> DecoderOutput:
        """Decode, with the head of every layer; `need_samples` keeps the samples, for an attention map."""
        content, reference = queries.content, queries.reference_points
        anchor = reference  # what predictions are relative to: the reference, possibly with its gradient
        mask = attention_mask(queries.valid, queries.keep)
        predictions: list[Predictions] = []
        samples: list[AttentionSamples] = []
        for i, (layer, head) in enumerate(zip(self.layers, heads, strict=True)):
            if i > 0:
                reference, anchor = self.refinement(heads[i - 1], content, reference, predictions[-1], self.logit_eps)
            at = self.query_position(queries, reference, content, memory.pyramid, layer=i)
            content, layer_samples = layer(content, at, memory, mask, need_samples=need_samples)
            predictions.append(head(self.norm(content), inverse_sigmoid(anchor, self.logit_eps)))
            if layer_samples is not None:
                samples.append(layer_samples)
        return DecoderOutput(predictions=tuple(predictions), samples=tuple(samples) if samples else None)


def on_padded_levels(reference_points: Tensor, pyramid: Pyramid) -> Tensor:
    """Return (B, Q, L, 2|4): reference points of the unpadded image as shares of each padded level."""
    ratios = pyramid.valid_ratios(reference_points.dtype)
    ratios = ratios.repeat(1, 1, reference_points.shape[-1] // 2)
    return reference_points[:, :, None] * ratios[:, None]
