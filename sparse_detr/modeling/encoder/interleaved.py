"""Encoder layers that run between decoder layers, and read features around the best queries (IMFA, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from sparse_detr.layers import MLP, FeatureSampler, SparseFeatures, token_mask
from sparse_detr.modeling.encoder.deformable import EncoderOutput
from sparse_detr.modeling.heads import PredictionHead, Proposals, take_rows
from sparse_detr.structures import Queries, Tokens, TokenSelection


class NoEncoder(nn.Module):
    """No encoder layer before the decoder: all tokens pass unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()

    def forward(
        self, tokens: Tokens, selection: TokenSelection, proposals: Proposals, *, scores: Tensor | None = None
    ) -> EncoderOutput:
        """Return the tokens; see `DeformableEncoder`."""
        return EncoderOutput(memory=tokens.content, layers=())


@dataclass(frozen=True, eq=False)
class InterleavedTokens(Tokens):
    """The memory of one decoder layer: the tokens of the image, then the sparse tokens.

    Args:
        first: (B, N, C), the tokens of the image after the first encoder layer.
        points: (B, S, 2), where the sparse tokens were sampled: (x, y) in [0, 1] of the unpadded image; None in the
            first layer, which has no sparse tokens.
    """

    first: Tensor | None = None
    points: Tensor | None = None

    def with_sparse(self, sparse: SparseFeatures, *, skip: bool) -> InterleavedTokens:
        """Replace the sparse tokens by new ones; `skip` adds `first` to the tokens of the image."""
        image = slice(self.pyramid.num_tokens)
        content = self.content[:, image]
        if skip:
            assert self.first is not None
            content = content + self.first
        return replace(
            self,
            content=torch.cat([content, sparse.content], 1),
            position=torch.cat([self.position[:, image], sparse.position], 1),
            mask=pad(self.padding_mask[:, image], (0, sparse.points.shape[1]), value=False),
            points=sparse.points,
        )


class InterleavedEncoder(nn.Module):
    """One encoder layer in front of every decoder layer, for `Decoder` (IMFA, section 3.2).

    From the second layer on, the queries with the best classes give sparse tokens, sampled around their boxes from all
    maps. The encoder layer and the decoder layer after it read them with the tokens of the image; then they are thrown
    away. From the third layer on, the output of the first encoder layer is added to the tokens of the image. An MLP of
    the content, shared by all layers, scales the positions of the encoder layers.

    Args:
        layers: the encoder layers, as many as decoder layers.
        sampler: (content, boxes, maps) -> sparse tokens.
        num_sampling_queries: n, the queries that give sparse tokens.
        embed_dim: C.

    Raises:
        ValueError: no query gives sparse tokens, or there is only one layer, which has none.
    """

    def __init__(self, *, layers: list[nn.Module], sampler: FeatureSampler, num_sampling_queries: int, embed_dim: int):
        super().__init__()
        if len(layers) < 2:
            raise ValueError(
                "sparse tokens are read from the second layer on, so decoder_layers must be at least 2, got "
                f"{len(layers)}; for one layer choose a model without them, such as dab_detr"
            )
        if num_sampling_queries < 1:
            raise ValueError(
                f"num_sampling_queries must be at least 1, got {num_sampling_queries}; choose a larger share"
            )
        self.layers, self.sampler = nn.ModuleList(layers), sampler
        self.num_sampling_queries = num_sampling_queries
        self.position_scale = MLP(sizes=(embed_dim, embed_dim, embed_dim))

    def forward(
        self,
        memory: Tokens,
        queries: Queries,
        reference: Tensor,
        content: Tensor,
        head: PredictionHead | None,
        *,
        layer: int,
    ) -> InterleavedTokens:
        """Return the memory that a decoder layer reads; for the arguments see `FixedMemory`."""
        if head is None:
            encoded = self._encode(memory, layer)
            return InterleavedTokens(encoded, memory.position, memory.pyramid, memory.mask, memory.maps, first=encoded)
        assert isinstance(memory, InterleavedTokens)
        sparse = self.sampler(*self.choose(queries, reference, content, head), memory.maps)
        tokens = memory.with_sparse(sparse, skip=layer > 1)
        return replace(tokens, content=self._encode(tokens, layer))

    def choose(self, queries: Queries, boxes: Tensor, content: Tensor, head: PredictionHead) -> tuple[Tensor, Tensor]:
        """Return content (B, n, C) and boxes (B, n, 4) of the queries whose best class has the highest logit.

        Denoising queries are left out: their boxes are nearly the true ones.
        """
        start = queries.num_denoising
        content, boxes = content[:, start:], boxes[:, start:]
        scores = head.class_logits(content).detach().amax(-1)
        best = scores.topk(self.num_sampling_queries, dim=1).indices
        return take_rows(content, best), take_rows(boxes, best)

    def _encode(self, tokens: Tokens, layer: int) -> Tensor:
        """Return the new content of all tokens; only the layer itself sees their scaled positions."""
        scaled = replace(tokens, position=tokens.position * self.position_scale(tokens.content))
        return self.layers[layer](scaled, token_mask(tokens))
