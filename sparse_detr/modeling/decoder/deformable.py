"""The decoder, its deformable layer, the position of queries, and the refinement of boxes (Deformable DETR, section 4).

`Decoder` runs layers of every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_detr.layers import (
    AttentionSamples,
    DeformableAttention,
    FeedForward,
    attention_mask,
    inverse_sigmoid,
)
from sparse_detr.modeling.heads import PredictionHead, Predictions
from sparse_detr.structures import Pyramid, Queries, Tokens


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """The output of the decoder.

    Args:
        predictions: predictions of every layer, first to last.
        samples: samples of the cross-attention of every layer; None without `need_samples` and for full attention.
    """

    predictions: tuple[Predictions, ...]
    samples: tuple[AttentionSamples, ...] | None

    def split(self, count: int) -> tuple[DecoderOutput, DecoderOutput]:
        """Split the output into that of the first `count` queries and that of the others."""
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
        position: (B, Q, C), added to the content of a query that attends.
        reference_points: (B, Q, 2|4), points or boxes around which queries read the memory, in [0, 1] of the unpadded
            image.
        spatial: (B, Q, C), embedding that full attention compares with the positions of the memory; None for
            deformable attention.
    """

    position: Tensor
    reference_points: Tensor
    spatial: Tensor | None = None


class GivenPosition(nn.Module):
    """The query's own position embedding, the same in every layer (Deformable DETR, section 4.1)."""

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Return the position of the queries in one layer.

        Args:
            queries: input of the decoder.
            reference_points: (B, Q, 2|4) of this layer.
            content: (B, Q, C), input of this layer; in the first layer it holds nothing of the image yet.
            pyramid: geometry of the memory.
            layer: number of the decoder layer, from 0.
        """
        assert queries.position is not None
        return QueryPosition(position=queries.position, reference_points=reference_points)


class DecoderLayer(nn.Module):
    """Self-attention among queries, attention to the memory, a feed-forward network; post-norm.

    A subclass says in `read` how queries attend to the memory.

    Args:
        self_attn: attention of the queries to each other: (content, position, mask) -> content.
        cross_attn: attention of the queries to the memory.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on the outputs of both attentions.
    """

    def __init__(
        self, *, self_attn: nn.Module, cross_attn: nn.Module, ffn: FeedForward, embed_dim: int, dropout: float
    ):
        super().__init__()
        self.self_attn, self.cross_attn, self.ffn = self_attn, cross_attn, ffn
        self.self_attn_norm, self.cross_attn_norm = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.ffn_norm = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        query_position: QueryPosition,
        memory: Tokens,
        mask: Tensor | None,
        *,
        need_samples: bool = False,
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Update the content of queries.

        Args:
            content: (B, Q, C).
            query_position: embedding and reference of the queries.
            memory: encoded tokens, which the queries read.
            mask: which query may attend to which, see `attention_mask`.
            need_samples: return the samples of the cross-attention; the faster fused kernel does not keep them.

        Returns:
            The new content, and the samples or None.
        """
        attended = self.self_attn(content, query_position.position, mask)
        content = self.self_attn_norm(content + self.dropout(attended))
        attended, samples = self.read(content, query_position, memory, need_samples=need_samples)
        content = self.cross_attn_norm(content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content)), samples

    def read(
        self, content: Tensor, query_position: QueryPosition, memory: Tokens, *, need_samples: bool
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Return (B, Q, C), what queries with this content (B, Q, C) read, and the samples; None for full attention."""
        raise NotImplementedError


class DeformableDecoderLayer(DecoderLayer):
    """`DecoderLayer` with deformable attention to the memory."""

    cross_attn: DeformableAttention

    def read(
        self, content: Tensor, query_position: QueryPosition, memory: Tokens, *, need_samples: bool
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Attend around the reference points; see `DecoderLayer`."""
        query = content + query_position.position
        points = on_padded_levels(query_position.reference_points, memory.pyramid)
        if need_samples:
            return self.cross_attn.attend_with_samples(query, points, memory.content, memory.pyramid)
        return self.cross_attn(query, points, memory.content, memory.pyramid), None


class NoRefinement(nn.Module):
    """No refinement: every layer starts from the reference of the queries (Deformable DETR, section 4.1)."""

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the reference of the next layer, and the reference that its predictions are relative to.

        Args:
            head: head of the layer that has just run.
            content: (B, Q, C), output of that layer.
            reference: (B, Q, 2|4), reference of that layer.
            predictions: predictions of that head.
            logit_eps: see `inverse_sigmoid`.
        """
        return reference, reference


class BoxRefinement(nn.Module):
    """Refinement: every layer starts from the detached boxes of the layer before (Deformable DETR, section 4.2)."""

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the predicted boxes, detached, as both references; see `NoRefinement`."""
        boxes = predictions.boxes.detach()
        return boxes, boxes


class LookForwardTwice(nn.Module):
    """Refinement in which a prediction also trains the layer before (DINO, section 3.5; also in the code of DAB-DETR).

    The next layer attends around a detached box, and predicts relative to the same box with its gradient. The head
    reads the content before the norm of the decoder here, and after it for predictions. So the next reference differs
    from the predicted box.
    """

    def forward(
        self, head: PredictionHead, content: Tensor, reference: Tensor, predictions: Predictions, logit_eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the next reference, first detached, then with its gradient; see `NoRefinement`."""
        boxes = (head.box_embed(content) + inverse_sigmoid(reference, logit_eps)).sigmoid()
        return boxes.detach(), boxes


class FixedMemory(nn.Module):
    """No encoder layer between decoder layers: every decoder layer reads the same memory."""

    def forward(
        self,
        memory: Tokens,
        queries: Queries,
        reference: Tensor,
        content: Tensor,
        head: PredictionHead | None,
        *,
        layer: int,
    ) -> Tokens:
        """Return the memory that a decoder layer reads.

        Args:
            memory: memory of the layer before; in the first layer the input of the decoder.
            queries: input of the decoder.
            reference: (B, Q, 2|4), reference of this layer.
            content: (B, Q, C), input of this layer.
            head: head of the layer before; None in the first layer.
            layer: number of the decoder layer, from 0.
        """
        return memory


class Decoder(nn.Module):
    """Layers that each predict boxes relative to a reference, which the refinement updates from layer to layer.

    Args:
        layers: the layers, first to last.
        query_position: makes the position of the queries from their reference.
        refinement: makes the reference of the next layer.
        norm: normalisation in front of the heads; the next layer and the refinement read the content before it. None
            for no normalisation.
        encoder: encoder layers that run between the decoder layers, such as `InterleavedEncoder`; `FixedMemory` if
            None.
        logit_eps: see `inverse_sigmoid`.
    """

    def __init__(
        self,
        *,
        layers: list[nn.Module],
        query_position: nn.Module,
        refinement: nn.Module,
        norm: nn.Module | None = None,
        encoder: nn.Module | None = None,
        logit_eps: float = 1e-5,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.query_position, self.refinement = query_position, refinement
        self.norm = norm or nn.Identity()
        self.encoder = encoder or FixedMemory()
        self.logit_eps = logit_eps

    def forward(
        self,
        queries: Queries,
        memory: Tokens,
        heads: Sequence[PredictionHead] | nn.ModuleList,
        *,
        need_samples: bool = False,
        num_layers: int | None = None,
    ) -> DecoderOutput:
        """Decode queries, with one head a layer.

        Args:
            queries: input of the decoder.
            memory: encoded tokens.
            heads: one for every layer.
            need_samples: keep the samples that an attention map is made of.
            num_layers: stop after so many layers; None runs all.
        """
        content, reference = queries.content, queries.reference_points
        anchor = reference  # predictions are relative to it: the reference, possibly with its gradient
        mask = attention_mask(queries.valid, queries.keep)
        predictions: list[Predictions] = []
        samples: list[AttentionSamples] = []
        for i, (layer, head) in enumerate(list(zip(self.layers, heads, strict=True))[:num_layers]):
            if i > 0:
                reference, anchor = self.refinement(heads[i - 1], content, reference, predictions[-1], self.logit_eps)
            previous_head = heads[i - 1] if i > 0 else None
            memory = self.encoder(memory, queries, reference, content, previous_head, layer=i)
            position = self.query_position(queries, reference, content, memory.pyramid, layer=i)
            content, layer_samples = layer(content, position, memory, mask, need_samples=need_samples)
            predictions.append(self.predict(head, content, anchor))
            if layer_samples is not None:
                samples.append(layer_samples)
        return DecoderOutput(predictions=tuple(predictions), samples=tuple(samples) if samples else None)

    def predict(self, head: nn.Module, content: Tensor, anchor: Tensor) -> Predictions:
        """Return the predictions of a layer from its output (B, Q, C), relative to the `anchor` (B, Q, 2|4)."""
        return head(self.norm(content), inverse_sigmoid(anchor, self.logit_eps))


def on_padded_levels(reference_points: Tensor, pyramid: Pyramid) -> Tensor:
    """Return (B, Q, L, 2|4): reference points in [0, 1] of each padded level, from [0, 1] of the unpadded image."""
    ratios = pyramid.valid_ratios(reference_points.dtype)
    ratios = ratios.repeat(1, 1, reference_points.shape[-1] // 2)
    return reference_points[:, :, None] * ratios[:, None]
