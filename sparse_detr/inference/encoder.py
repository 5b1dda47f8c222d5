"""The encoder in inference form: kept rows are written in place, and rows that only fill the batch are left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.inference.attention import InferenceDeformableAttention
from sparse_detr.inference.conversion import Conversion, InferenceForm, copied
from sparse_detr.inference.packing import Packing, flat_indices
from sparse_detr.modeling.encoder.deformable import (
    DeformableEncoder,
    DeformableEncoderLayer,
    EncoderOutput,
    TokenRows,
)
from sparse_detr.modeling.encoder.dual_attention import DualAttentionLayer
from sparse_detr.modeling.encoder.levels import LevelFeedForwardLayer
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Pyramid, Tokens, TokenSelection, TopKTokens


@dataclass(frozen=True, eq=False)
class PackedRows(TokenRows):
    """`TokenRows`, and which of them count.

    Args:
        packing: the rows that pass the layers; the content of all others is without meaning.
    """

    packing: Packing | None = None


class InferenceEncoderLayer(InferenceForm, DeformableEncoderLayer):
    """`DeformableEncoderLayer` whose matrix products skip the rows that do not count."""

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, proposals: Proposals) -> Tensor:
        """Return the refined content (B, K, C); that of rows that do not count is without meaning."""
        packing = packing_of(rows)
        content = self._attend(rows, packing, source, pyramid)
        return packing.put(self.ffn_norm(self.ffn(content).add_(content)))

    def attend(self, rows: TokenRows, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Return (B, K, C), the content after the attention and its normalisation."""
        packing = packing_of(rows)
        return packing.put(self._attend(rows, packing, source, pyramid))

    def _attend(self, rows: TokenRows, packing: Packing, source: Tensor, pyramid: Pyramid) -> Tensor:
        """Return (R, C), the rows that count after the attention and its normalisation."""
        content = packing.take(rows.content)
        if isinstance(self.self_attn, InferenceDeformableAttention):
            query = content + packing.take(rows.position)
            attended = self.self_attn.attend(query, packing, rows.reference_points, source, pyramid)
        else:
            query = rows.content + rows.position
            attended = packing.take(self.self_attn(query, rows.reference_points, source, pyramid))
        return self.self_attn_norm(attended + content)


class InferenceDualAttentionLayer(DualAttentionLayer, InferenceEncoderLayer):
    """`DualAttentionLayer`: object tokens attend to each other, then `InferenceEncoderLayer`."""


class InferenceLevelFeedForwardLayer(LevelFeedForwardLayer, InferenceEncoderLayer):
    """`LevelFeedForwardLayer`: the attention of `InferenceEncoderLayer`, then feed-forward networks by level."""


class InferenceEncoder(InferenceForm, DeformableEncoder):
    """`DeformableEncoder` that writes kept rows in place, and makes positions and references of kept tokens alone."""

    keeps_surplus: bool
    """Whether a layer reads rows that only fill the batch, as in the public code of Focus-DETR."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceEncoder:
        """Return the form of a `DeformableEncoder`."""
        assert isinstance(part, DeformableEncoder)
        result = copied(part, cls, convert)
        result.keeps_surplus = any(getattr(layer, "surplus", "masked") != "masked" for layer in part.layers)
        return result

    def forward(
        self, tokens: Tokens, selection: TokenSelection, proposals: Proposals, *, scores: Tensor | None = None
    ) -> EncoderOutput:
        """Refine the selected tokens; see `DeformableEncoder`."""
        self.check(tokens, selection)
        memory, outputs = tokens.content, []
        previous: TokenSelection | None = None
        for i, layer in enumerate(self.layers):
            kept = selection.at_layer(i)
            if kept is not previous:
                rows = self._rows(replace(tokens, content=memory), kept, proposals, scores)
            source = memory if self.source == "updated" else tokens.content
            rows = replace(rows, content=layer(rows, source, tokens.pyramid, proposals))
            memory = self._write(memory, kept, rows, own=memory is not tokens.content)
            outputs.append(rows.content)
            previous = kept
        return EncoderOutput(memory=memory, layers=tuple(outputs))

    def _rows(self, tokens: Tokens, kept: TokenSelection, proposals: Proposals, scores: Tensor | None) -> PackedRows:
        """Return the selected tokens; see `take_rows` of the encoder."""
        dtype = tokens.position.dtype
        centers, ratios = kept.gather(tokens.pyramid.centers(dtype)), tokens.pyramid.valid_ratios(dtype)
        return PackedRows(
            content=kept.gather(tokens.content),
            position=kept.gather(tokens.position),
            reference_points=centers[:, :, None] * ratios[:, None],
            valid=kept.valid,
            scores=None if scores is None else kept.gather(scores),
            any_valid=kept.any_valid,
            packing=self._packing(kept, tokens, proposals),
        )

    def _packing(self, kept: TokenSelection, tokens: Tokens, proposals: Proposals) -> Packing:
        """Return the rows that count."""
        valid = kept.valid
        shape = (valid.shape[0], valid.shape[1])
        if isinstance(kept, TopKTokens):
            return Packing.all_rows(shape) if self.keeps_surplus else Packing.of(valid, shape)
        if not tokens.has_padding:
            return Packing.of(None, shape)
        # Proposals that do not rule out padding may make queries of it.
        return Packing.all_rows(shape) if proposals.keep is None else Packing.of(valid, shape)

    def _write(self, memory: Tensor, kept: TokenSelection, rows: PackedRows, *, own: bool) -> Tensor:
        """Return the memory with the new content of the kept tokens; `own` memory may be written in place."""
        packing = rows.packing
        assert packing is not None
        if not isinstance(kept, TopKTokens) or not (packing.full or packing.rows is not None):
            return kept.scatter(memory, rows.content)
        memory = memory if own else memory.clone(memory_format=torch.contiguous_format)
        places = packing.take(flat_indices(kept.indices, memory.shape[1]))
        memory.view(-1, memory.shape[-1]).index_copy_(0, places, packing.take(rows.content))
        return memory


def packing_of(rows: TokenRows) -> Packing:
    """Return which rows count; all of them if nobody said."""
    packing: Any = getattr(rows, "packing", None)
    return packing or Packing.all_rows((rows.content.shape[0], rows.content.shape[1]))
