"""Focus-DETR's encoder layer: the tokens most likely to be objects first attend to each other (section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.encoder import EncoderLayer, TokenRows
from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.structures import Pyramid, geometry_dtype


class DualAttentionLayer(EncoderLayer):
    """Self-attention among the best object tokens, then what `EncoderLayer` does with all of its tokens.

    A token's object score is its own score times that of its best class, which the proposal head says.

    Args:
        object_attn: dense self-attention, batch first.
        embed_dim: C.
        num_objects: tokens that attend to each other; all, where a layer refines fewer.
        object_score: `probability_product`, or `logit_product`, as the public implementation: of two negative logits,
            as most are, the lower ones give the higher product.
        surplus: rows that only fill the batch are `masked`: no object token, no key; or `attended`, like any other,
            as in the public implementation.
        options: of `EncoderLayer`.
    """

    def __init__(
        self,
        *,
        object_attn: nn.MultiheadAttention,
        embed_dim: int,
        num_objects: int,
        object_score: Literal["probability_product", "logit_product"] = "probability_product",
        surplus: Literal["masked", "attended"] = "masked",
        **options: Any,
    ):
        super().__init__(embed_dim=embed_dim, **options)
        self.object_attn, self.object_attn_norm = object_attn, nn.LayerNorm(embed_dim)
        self.num_objects, self.object_score, self.surplus = num_objects, object_score, surplus

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, head: PredictionHead | None) -> Tensor:
        if head is None or rows.scores is None:
            raise ValueError("object tokens are ranked by a token score and a proposal head, and the model lacks one")
        rows = replace(rows, content=self._relate_objects(rows, self.object_tokens(rows, head)))
        return super().forward(rows, source, pyramid, head)

    @torch.no_grad()
    def object_tokens(self, rows: TokenRows, head: PredictionHead) -> Tensor:
        """(B, J) long: the rows of highest object score, best first; J is at most `num_objects`."""
        assert rows.scores is not None
        dtype = head.class_embed.weight.dtype
        with torch.autocast(rows.content.device.type, enabled=False):  # half precision would be full of ties
            best_class = head.class_embed(rows.content.to(dtype)).amax(-1)
        scores, best_class = (x.to(geometry_dtype(dtype)) for x in (rows.scores, best_class))
        as_probabilities = self.object_score == "probability_product"
        score = scores.sigmoid() * best_class.sigmoid() if as_probabilities else scores * best_class
        left_out = scores.isneginf()  # padding, ranked behind everything: times a negative logit it would come first
        if self.surplus == "masked":
            left_out = left_out | ~rows.real
        score = score.masked_fill(left_out, float("-inf"))
        return score.topk(min(self.num_objects, score.shape[1]), dim=1).indices

    def _relate_objects(self, rows: TokenRows, chosen: Tensor) -> Tensor:
        """The content of all rows, that of the chosen after attending to each other."""
        index = chosen[..., None].expand(-1, -1, rows.content.shape[-1])
        content = rows.content.gather(1, index)
        located = content + rows.position.gather(1, index)
        padding = ~rows.real.gather(1, chosen) if self.surplus == "masked" else None
        attended, _ = self.object_attn(located, located, content, key_padding_mask=padding, need_weights=False)
        content = self.object_attn_norm(content + self.dropout(attended))
        return rows.content.scatter(1, index, content)
