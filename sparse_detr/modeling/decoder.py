"""The deformable decoder with optional box refinement (Deformable DETR, section 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_detr.layers import AttentionSamples, FeedForward, MultiScaleDeformableAttention, inverse_sigmoid
from sparse_detr.modeling.heads import PredictionHead, Predictions
from sparse_detr.modeling.queries import Queries
from sparse_detr.structures import Pyramid


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """Args:
    predictions: of every layer, first to last.
    samples: where every layer's cross-attention looked; None unless they were asked for.
    """

    predictions: tuple[Predictions, ...]
    samples: tuple[AttentionSamples, ...] | None


class DecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the memory, a feed-forward network; post-norm.

    Args:
        self_attn: batch-first attention.
        cross_attn: deformable attention.
        ffn: the feed-forward branch.
        embed_dim: C.
        dropout: probability, on either attention's output.
    """

    def __init__(
        self,
        *,
        self_attn: nn.MultiheadAttention,
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
        self,
        content: Tensor,
        position: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        pyramid: Pyramid,
        padding_queries: Tensor | None,
        *,
        need_samples: bool = False,
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Update the queries' content.

        Args:
            content: (B, Q, C).
            position: (B, Q, C).
            reference_points: (B, Q, L, 2|4), on the padded levels.
            memory: (B, N, C).
            padding_queries: (B, Q) bool, True on queries that others must not attend to.
            need_samples: say where the cross-attention looked, which its fastest form does not.

        Returns:
            The new content, and where the cross-attention looked, or None.
        """
        located = content + position
        attended, _ = self.self_attn(located, located, content, key_padding_mask=padding_queries, need_weights=False)
        content = self.self_attn_norm(content + self.dropout(attended))
        located = content + position
        if need_samples:
            samples = self.cross_attn.sample(located, reference_points, pyramid)
            attended = self.cross_attn.read(memory, samples, pyramid)
        else:
            samples = None
            attended = self.cross_attn(located, reference_points, memory, pyramid)
        content = self.cross_attn_norm(content + self.dropout(attended))
        return self.ffn_norm(content + self.ffn(content)), samples


class Decoder(nn.Module):
    """Layers that each predict boxes, and with refinement start from the boxes that the one before predicted.

    Args:
        layers: the layers, first to last.
        refine: take every layer's boxes, detached, as the next one's reference (iterative bounding box refinement).
    """

    def __init__(self, *, layers: list[nn.Module], refine: bool):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refine = refine

    def forward(
        self,
        queries: Queries,
        memory: Tensor,
        pyramid: Pyramid,
        heads: Sequence[PredictionHead] | nn.ModuleList,
        *,
        need_samples: bool = False,
    ) -> DecoderOutput:
        """Decode, with the head of every layer; `need_samples` says where the layers looked, for an attention map."""
        content, reference = queries.content, queries.reference_points
        padding_queries = None if queries.valid is None else ~queries.valid
        predictions, samples = [], []
        for layer, head in zip(self.layers, heads, strict=True):
            points = on_padded_levels(reference, pyramid)
            content, looked = layer(
                content, queries.position, points, memory, pyramid, padding_queries, need_samples=need_samples
            )
            predictions.append(head(content, inverse_sigmoid(reference)))
            samples.append(looked)
            if self.refine:
                reference = predictions[-1].boxes.detach()
        return DecoderOutput(predictions=tuple(predictions), samples=tuple(samples) if need_samples else None)


def on_padded_levels(reference_points: Tensor, pyramid: Pyramid) -> Tensor:
    """(B, Q, L, 2|4): reference points of the unpadded image as shares of each padded level."""
    ratios = pyramid.valid_ratios(reference_points.dtype)
    ratios = ratios.repeat(1, 1, reference_points.shape[-1] // 2)
    return reference_points[:, :, None] * ratios[:, None]
