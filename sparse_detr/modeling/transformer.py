"""The flow of every model, PyTorch alone: tokenize, encode, query, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sparse_detr.modeling.decoder import DecoderOutput
from sparse_detr.modeling.effort import AnyEffort, Effort, effort_of_call
from sparse_detr.modeling.heads import Heads, Proposals
from sparse_detr.modeling.selection import AnyBudget, Selected
from sparse_detr.structures import ImageSizes, Queries, Targets, Tokens, check_image_sizes, map_size


@dataclass(frozen=True, eq=False)
class Encoded:
    """The output of the encoder, with all that later steps read.

    Args:
        memory: all tokens; those that were not selected are unchanged. Or the tokens that the selector gave instead.
        layers: (B, K, C) of every encoder layer, the tokens that it refined.
        selected: the selected tokens, with their scores.
        proposals: a box for every token.
    """

    memory: Tokens
    layers: tuple[Tensor, ...]
    selected: Selected
    proposals: Proposals


class DetectionTransformer(nn.Module):
    """A detection transformer whose encoder refines all tokens, or only the selected ones.

    This is what is exported and compiled; `GeneralizedDETR` puts Detectron2's contract around it.

    Args:
        backbone: image batch -> dict of maps.
        in_features: the maps to use, fine to coarse.
        tokenizer: maps -> tokens.
        proposals: a box for every token.
        projection: a layer between the tokens and the scorer and proposal head; None for models without these.
        selector: chooses the tokens that the encoder refines.
        encoder: refines the selected tokens.
        queries: encoded tokens -> decoder queries.
        denoising: in training, adds queries that start from noised true boxes.
        decoder: queries -> predictions.
        heads: class and box heads.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_features: Sequence[str],
        tokenizer: nn.Module,
        proposals: nn.Module,
        projection: nn.Module | None,
        selector: nn.Module,
        encoder: nn.Module,
        queries: nn.Module,
        denoising: nn.Module,
        decoder: nn.Module,
        heads: Heads,
    ):
        super().__init__()
        self.backbone, self.in_features, self.tokenizer = backbone, tuple(in_features), tokenizer
        self.proposals, self.projection, self.selector = proposals, projection, selector
        self.encoder, self.queries, self.denoising, self.decoder = encoder, queries, denoising, decoder
        self.decoder_heads = nn.ModuleList(heads.decoder)
        self.proposal_head = heads.proposals
        self.encoder_heads = nn.ModuleList(heads.encoder)

    def forward(
        self, images: Tensor, sizes: ImageSizes = None, budget: AnyEffort | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict classes and boxes.

        Args:
            images: (B, channels, H, W), normalised and padded with zeros at the right and bottom.
            sizes: (h, w) of every image before padding, see `ImageSizes`; (B, 2) long for export, None for no padding.
            budget: how many tokens the encoder refines, and how many decoder layers and queries run, see `AnyEffort`; a
                number is a share of the tokens, None the model's own budget.

        Returns:
            Logits (B, Q, classes) and boxes (B, Q, 4), cxcywh in [0, 1] of the unpadded image.

        Raises:
            ValueError: the sizes or the budget cannot be used.
        """
        check_image_sizes(sizes, images)
        effort = self.effort(budget)
        tokens = self.tokenize(images, sizes)
        encoded = self.encode(tokens, effort.tokens)
        queries = self.query(encoded, num_queries=effort.num_queries)
        last = self.decode(queries, encoded, num_layers=effort.decoder_layers).predictions[-1]
        return last.logits, last.boxes

    def effort(self, budget: AnyEffort | None) -> Effort:
        """Return how much of the model a call with this budget runs.

        Raises:
            ValueError: the budget cannot be read, or asks for more layers or queries than the model has.
        """
        effort = effort_of_call(budget)
        effort.check(decoder_layers=len(self.decoder_heads), num_queries=getattr(self.queries, "num_queries", None))
        return effort

    def tokenize(self, images: Tensor, sizes: ImageSizes) -> Tokens:
        """Turn images into tokens; for the arguments see `forward`."""
        features = self.backbone(images)
        return self.tokenizer([features[name] for name in self.in_features], sizes, map_size(images))

    def encode(self, tokens: Tokens, budget: AnyBudget | None = None) -> Encoded:
        """Select tokens within the budget, and refine the selected ones."""
        proposals = self.proposals(
            tokens.pyramid, tokens.position.dtype, projection=self.projection, head=self.proposal_head
        )
        selected = self.selector(tokens, proposals, budget)
        tokens = tokens if selected.tokens is None else selected.tokens
        output = self.encoder(tokens, selected.refined, proposals, scores=selected.ranking)
        return Encoded(replace(tokens, content=output.memory), output.layers, selected, proposals)

    def query(
        self,
        encoded: Encoded,
        targets: Sequence[Targets] | None = None,
        *,
        num_queries: int | Sequence[int] | None = None,
    ) -> Queries:
        """Make the queries of the decoder.

        Args:
            encoded: output of the encoder.
            targets: true boxes, with which models with denoising put denoising queries in front.
            num_queries: keep the best queries only, see `Effort`.
        """
        queries = self.queries(encoded.memory.content, encoded.proposals)
        if num_queries is not None:
            queries = queries.first(num_queries)
        return queries if targets is None else self.denoising(queries, targets)

    def decode(
        self, queries: Queries, encoded: Encoded, *, need_samples: bool = False, num_layers: int | None = None
    ) -> DecoderOutput:
        """Turn queries into predictions; see `Decoder`."""
        return self.decoder(
            queries, encoded.memory, self.decoder_heads, need_samples=need_samples, num_layers=num_layers
        )
