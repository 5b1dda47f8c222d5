"""The encoder layer of Focus-DETR: the tokens most likely to be objects first attend to each other (section 3.2)."""

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
    """Full self-attention of tokens, batch first; the position is added to queries and keys.

    In training it is PyTorch's own layer. In eval mode it runs `SelfAttention` on the same weights, with the same
    result: this can be exported with a dynamic batch size, which the masks of PyTorch's layer prevent.
    """

    def forward(self, content: Tensor, position: Tensor, valid: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return (B, J, C) of (B, J, C) tokens; no token attends to one whose `valid` (B, J) bool is False."""
        if not self.training:
            return SelfAttention.forward(self, content, position, attention_mask(valid))  # type: ignore[arg-type]
        query = content + position
        padding_mask = None if valid is None else ~valid
        return super().forward(query, query, content, key_padding_mask=padding_mask, need_weights=False)[0]


class DualAttentionLayer(DeformableEncoderLayer):
    """Full self-attention among object tokens, then `DeformableEncoderLayer` on all tokens of the layer.

    The object score of a token is its token score times the score of its best class in the proposal head.

    Args:
        object_attn: full self-attention.
        embed_dim: C.
        num_objects: how many tokens attend to each other; all of a layer that refines fewer.
        object_score: `probability_product`, or `logit_product`, as the public implementation: most logits are negative,
            and the lower two negative logits are, the higher is their product.
        surplus: rows that only fill the batch are `masked`: neither object tokens nor keys; or `attended` like any
            other, as in the public implementation.
        options: arguments of `DeformableEncoderLayer`.
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
        """Return the refined content of some tokens; see `DeformableEncoderLayer`."""
        rows = replace(rows, content=self._relate_objects(rows, self.object_tokens(rows, proposals)))
        return super().forward(rows, source, pyramid, proposals)

    @torch.no_grad()
    def object_tokens(self, rows: TokenRows, proposals: Proposals) -> Tensor:
        """Return (B, J) long: the rows with the highest object score, best first; J is at most `num_objects`.

        Raises:
            ValueError: the tokens have no scores, or there is no proposal head to classify them.
        """
        if rows.scores is None:
            raise ValueError(
                "object tokens are ranked by a token score, but this selector gives none; choose one with a scorer"
            )
        best_class = proposals.class_logits(rows.content).amax(-1)
        scores, best_class = (x.to(geometry_dtype(x.dtype)) for x in (rows.scores, best_class))
        as_probabilities = self.object_score == "probability_product"
        score = scores.sigmoid() * best_class.sigmoid() if as_probabilities else scores * best_class
        keep = ~scores.isneginf()  # False on padding, whose -inf times a negative logit would come first
        allowed = self._keep(rows)
        if allowed is not None:
            keep = keep & allowed
        score = score.masked_fill(~keep, float("-inf"))
        return score.topk(at_most(self.num_objects, score.shape[1]), dim=1).indices

    def _keep(self, rows: TokenRows) -> Tensor | None:
        """Return (B, K) bool, True on rows that may be object tokens; None if all may."""
        if self.surplus == "masked":
            return rows.valid
        return None if rows.any_valid is None else rows.any_valid.expand_as(rows.valid)

    def _relate_objects(self, rows: TokenRows, chosen: Tensor) -> Tensor:
        """Return the content of all rows; the `chosen` rows (B, J) have attended to each other."""
        content = take_rows(rows.content, chosen)
        keep = self._keep(rows)
        valid = None if keep is None else keep.gather(1, chosen)
        attended = self.object_attn(content, take_rows(rows.position, chosen), valid)
        content = self.object_attn_norm(content + self.dropout(attended))
        return rows.content.scatter(1, chosen[..., None].expand_as(content), content)
