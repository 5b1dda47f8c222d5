"""Focus-DETR's encoder layer: the tokens most likely to be objects first attend to each other (section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import SelfAttention, attention_mask
from sparse_detr.modeling.encoder.deformable import DeformableEncoderLayer, TokenRows
from sparse_detr.modeling.heads import Proposals, take_rows
from sparse_detr.structures import Pyramid, at_most, geometry_dtype


class ObjectAttention(nn.MultiheadAttention):
    """Full self-attention of tokens, batch first, whose queries and keys know their position.

    In training it is PyTorch's own layer. In eval mode it computes the same as `SelfAttention`, which has the same
    weights and can be exported with an open batch size; PyTorch's layer reshapes its masks and cannot.
    """

    def forward(self, content: Tensor, position: Tensor, valid: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return (B, J, C) of (B, J, C) tokens; `valid` (B, J) bool is False where no token may attend to."""
        if not self.training:
            return SelfAttention.forward(self, content, position, attention_mask(valid))  # type: ignore[arg-type]
        query = content + position
        padding = None if valid is None else ~valid
        return super().forward(query, query, content, key_padding_mask=padding, need_weights=False)[0]


class DualAttentionLayer(DeformableEncoderLayer):
    """Self-attention among the best object tokens, then what `DeformableEncoderLayer` does with all of its tokens.

    A token's object score is its own score times that of its best class, which the proposal head says.

    Args:
        object_attn: full self-attention.
        embed_dim: C.
        num_objects: tokens that attend to each other; all, where a layer refines fewer.
        object_score: `probability_product`, or `logit_product`, as the public implementation: of two negative logits,
            as most are, the lower ones give the higher product.
        surplus: rows that only fill the batch are `masked`: no object token, no key; or `attended`, like any other,
            as in the public implementation.
        options: of `DeformableEncoderLayer`.
    """

    def __init__(
        self,
        *,
        object_attn: ObjectAttention,
        embed_dim: int,
        num_objects: int,
        object_score: Literal["probability_product", "logit_product"] = "probability_product",
        surplus: Literal["masked", "attended"] = "masked",
        **options: Any,
    ):
        super().__init__(embed_dim=embed_dim, **options)
        self.object_attn, self.object_attn_norm = object_attn, nn.LayerNorm(embed_dim)
        self.num_objects, self.object_score, self.surplus = num_objects, object_score, surplus

    def forward(self, rows: TokenRows, source: Tensor, pyramid: Pyramid, proposals: Proposals) -> Tensor:
        """Refine some tokens; see `DeformableEncoderLayer`."""
        rows = replace(rows, content=self._relate_objects(rows, self.object_tokens(rows, proposals)))
        return super().forward(rows, source, pyramid, proposals)

    @torch.no_grad()
    def object_tokens(self, rows: TokenRows, proposals: Proposals) -> Tensor:
        """Return (B, J) long: the rows of highest object score, best first; J is at most `num_objects`.

        Raises:
            ValueError: the tokens have no scores, or there is no proposal head to say what they may be.
        """
        if rows.scores is None:
            raise ValueError("object tokens are ranked by a token score, and this selector scores nothing")
        best_class = proposals.class_logits(rows.content).amax(-1)
        scores, best_class = (x.to(geometry_dtype(x.dtype)) for x in (rows.scores, best_class))
        as_probabilities = self.object_score == "probability_product"
        score = scores.sigmoid() * best_class.sigmoid() if as_probabilities else scores * best_class
        drop = scores.isneginf()  # padding, ranked behind everything: times a negative logit it would come first
        keep = self._keep(rows)
        if keep is not None:
            drop = drop | ~keep
        score = score.masked_fill(drop, float("-inf"))
        return score.topk(at_most(self.num_objects, score.shape[1]), dim=1).indices

    def _keep(self, rows: TokenRows) -> Tensor | None:
        """Return (B, K) bool, True on rows that may be object tokens; None for all."""
        if self.surplus == "masked":
            return rows.valid
        return None if rows.used is None else rows.used.expand_as(rows.valid)

    def _relate_objects(self, rows: TokenRows, chosen: Tensor) -> Tensor:
        """Return the content of all rows, that of the chosen after attending to each other."""
        content = take_rows(rows.content, chosen)
        keep = self._keep(rows)
        valid = None if keep is None else keep.gather(1, chosen)
        attended = self.object_attn(content, take_rows(rows.position, chosen), valid)
        content = self.object_attn_norm(content + self.dropout(attended))
        return rows.content.scatter(1, chosen[..., None].expand_as(content), content)
