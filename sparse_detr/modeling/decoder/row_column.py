"""The decoder layer with row-column decoupled attention to the memory (Anchor DETR, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from sparse_detr.layers import AttentionSamples
from sparse_detr.modeling.decoder.deformable import DecoderLayer, QueryPosition
from sparse_detr.structures import Tokens


class RowColumnDecoderLayer(DecoderLayer):
    """`DecoderLayer` with row-column decoupled attention to the memory.

    A query is compared with the columns and rows of the memory by its content plus the position of the x and y of its
    reference point, which the memory's `axes.embed` makes.
    """

    def read(
        self, content: Tensor, query_position: QueryPosition, memory: Tokens, *, need_samples: bool
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Attend to the memory; see `DecoderLayer`. There are no samples: None."""
        assert memory.axes is not None
        x, y = memory.axes.embed(query_position.reference_points[..., :2]).unbind(-2)
        return self.cross_attn(content + x, content + y, memory), None
