"""The decoder layer with full attention, and positions that are added to queries and keys (DETR, section 3.2).

Carion et al., ECCV 2020.
"""

from __future__ import annotations

from torch import Tensor

from sparse_detr.layers import AttentionSamples, token_mask
from sparse_detr.modeling.decoder.deformable import DecoderLayer, QueryPosition
from sparse_detr.structures import Tokens


class FullAttentionDecoderLayer(DecoderLayer):
    """`DecoderLayer` with full attention to the memory: positions are added to queries and keys."""

    def read(
        self, content: Tensor, query_position: QueryPosition, memory: Tokens, *, need_samples: bool
    ) -> tuple[Tensor, AttentionSamples | None]:
        """Attend to the memory; see `DecoderLayer`. There are no samples: None."""
        query, key = content + query_position.position, memory.content + memory.position
        return self.cross_attn(query, key, memory.content, token_mask(memory)), None
