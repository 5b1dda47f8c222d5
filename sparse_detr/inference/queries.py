"""Scores, proposals and queries in inference form: products over valid tokens, and boxes of chosen tokens alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_detr.inference.conversion import Conversion, InferenceForm, copied
from sparse_detr.inference.linear import PackedLinear
from sparse_detr.inference.packing import Packing, padding_of
from sparse_detr.modeling.heads import ProposalProjection, Proposals, take_rows
from sparse_detr.modeling.queries import TopKQueries
from sparse_detr.modeling.selection import ObjectnessScorer, ScoringNetwork, TokenScores, TopDownScorer
from sparse_detr.structures import Queries, Tokens, geometry_dtype


class InferenceProjection(InferenceForm, ProposalProjection):
    """`ProposalProjection` of the valid tokens; all others get what zeros get."""

    linear: PackedLinear

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceProjection | None:
        """Return the form of a `ProposalProjection`; None if its layer is not a plain linear one."""
        assert isinstance(part, ProposalProjection)
        if type(part.linear) is not nn.Linear:
            return None
        linear = PackedLinear.of_weights(part.linear.weight, part.linear.bias, convert, quantize=True)
        return copied(part, cls, convert, linear=linear)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Project tokens; see `ProposalProjection`."""
        packing = Packing.of(valid, (tokens.shape[0], tokens.shape[1]))
        if packing.rows is None:
            return self._project(tokens if packing.full else tokens.masked_fill(~valid[..., None], 0))
        rows = self._project(packing.take(tokens))
        return packing.put(rows, fill=self._project(tokens.new_zeros(1, tokens.shape[-1]))[0])

    def _project(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class InferenceScoringNetwork(InferenceForm, ScoringNetwork):
    """`ScoringNetwork` of the tokens that are no padding; the score of padding is 0. Its MLP keeps its dtype.

    Attributes:
        scores_padding: padding is scored too, for scorers that read its scores.
    """

    scores_padding = False

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceScoringNetwork:
        """Return the form of a `ScoringNetwork`."""
        assert isinstance(part, ScoringNetwork)
        return copied(part, cls, convert, mlp=convert.keeping_dtype()(part.mlp))

    def forward(self, x: Tensor, padding_mask: Tensor, gain: Tensor | None = None) -> Tensor:
        """Score tokens; see `ScoringNetwork`."""
        every = self.scores_padding or self.mean_over == "all"
        packing = Packing.of(None if every else ~padding_mask, (x.shape[0], x.shape[1]))
        if packing.rows is None:
            return super().forward(x, padding_mask, gain)
        normed = self.norm(packing.take(x))
        if gain is not None:
            normed = normed * packing.take(gain)[:, None]
        local, shared = nn.functional.gelu(self.embed(normed)).chunk(2, -1)
        wide = geometry_dtype(shared.dtype)
        counts = (~padding_mask).sum(1, keepdim=True)
        means = (packing.put(shared).sum(1, dtype=wide) / counts).to(shared.dtype)  # (B, C / 2)
        images = torch.div(packing.rows, packing.shape[1], rounding_mode="floor")
        features = torch.cat([local, means[images]], -1)
        return packing.put(self.mlp(features.to(self.norm.weight.dtype))).squeeze(-1)


class InferenceTopDownScorer(InferenceForm, TopDownScorer):
    """`TopDownScorer`; the public implementation interpolates the scores of padding too."""

    network: InferenceScoringNetwork

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceTopDownScorer:
        """Return the form of a `TopDownScorer`."""
        assert isinstance(part, TopDownScorer)
        result = copied(part, cls, convert)
        result.network.scores_padding = part.modulation == "released"
        return result


class InferenceObjectnessScorer(InferenceForm, ObjectnessScorer):
    """`ObjectnessScorer` without boxes, which only its loss reads."""

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        projected = proposals.project(tokens.content + tokens.position)
        packing = padding_of(tokens.padding_mask, tokens.has_padding)
        logits = self.head.class_embed(packing.take(projected))
        return TokenScores(packing.put(logits[:, 0] if self.class_agnostic else logits.amax(-1)))


class InferenceTopKQueries(InferenceForm, TopKQueries):
    """`TopKQueries` that ranks the tokens that may become queries, and predicts boxes of the chosen ones alone."""

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Score every token and turn the best tokens into queries."""
        projected = proposals.project(memory)
        chosen = self._best(projected, proposals)
        rows = take_rows(projected, chosen)
        predictions = proposals.predict(rows, chosen)
        valid = None if proposals.keep is None else proposals.keep.gather(1, chosen)
        content, position = self.start(take_rows(memory, chosen), rows, predictions.boxes)
        group = proposals.group(predictions, valid, class_agnostic=self.class_agnostic)
        return Queries(
            content=content, position=position, reference_points=predictions.boxes, valid=valid, proposals=group
        )

    def _best(self, projected: Tensor, proposals: Proposals) -> Tensor:
        """Return (B, Q) long: the tokens with the best logits, best first."""
        packing = Packing.of(proposals.keep, (projected.shape[0], projected.shape[1]))
        if packing.rows is None:
            return self._choose(proposals.class_logits(projected), proposals.keep)
        logits = proposals.class_logits(packing.take(projected))
        score = logits[:, 0] if self.class_agnostic else logits.amax(-1)
        return self._choose(packing.put(score[:, None], fill=float("-inf")), proposals.keep)
