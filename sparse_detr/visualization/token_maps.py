"""Maps of the tokens of one image: kept tokens, scores, pooling and attention, as arrays for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch import Tensor, nn

from sparse_detr.analysis.tokens import (
    covered_attention,
    kept_share,
    object_tokens,
    watch_object_rows,
    watch_sampled_points,
)
from sparse_detr.structures import DetectorOutput, PolledTokens, Pyramid

LevelMaps = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """The tokens of one image without the padding: for every level an (h, w) array that covers the whole image.

    Args:
        kept: bool, True on tokens that the encoder refines.
        kept_shares: share of the kept tokens of every level.
        kept_share: share of the kept tokens of all levels.
        covered_attention: share of the decoder's attention on kept tokens; NaN without an attention map.
        scores: token scores; None for an encoder without a scorer.
        attention: decoder attention map; None if it was not computed.
        objects: bool, True on kept tokens that attended to each other; None for an encoder without object tokens.
        points: (S, 2), where decoder layers sampled sparse tokens, by the number of the layer from 0: (x, y) in [0, 1]
            of the image; empty for models without sparse tokens.
        full_layers: encoder layers, counted from 1, that refine all tokens where others refine the kept ones only.
        pooling: of every pooled token, the weights of the tokens that it is the mean of; None without pooled tokens.
    """

    kept: LevelMaps
    kept_shares: Sequence[float]
    kept_share: float
    covered_attention: float
    scores: LevelMaps | None
    attention: LevelMaps | None
    objects: LevelMaps | None = None
    points: Mapping[int, np.ndarray] = field(default_factory=dict)
    full_layers: Sequence[int] = ()
    pooling: Sequence[LevelMaps] | None = None

    @property
    def is_selective(self) -> bool:
        """Whether any token is left out."""
        return not all(level.all() for level in self.kept)


def token_maps(
    output: DetectorOutput,
    image: int = 0,
    *,
    objects: Tensor | None = None,
    points: Mapping[int, Tensor] | None = None,
) -> TokenMaps:
    """Take the maps of one image of the batch out of a detector's output.

    Args:
        output: of the detector.
        image: number of the image.
        objects: (B, N) bool, see `analysis.tokens.object_tokens`.
        points: (B, S, 2) by layer, see `analysis.tokens.watch_sampled_points`.
    """
    kept, pyramid, attention = output.selection.keep, output.pyramid, output.attention_map
    kept_count = (kept & ~pyramid.padding_mask)[image].sum().item()
    covered = float("nan") if attention is None else covered_attention(kept, attention)[image].item()
    return TokenMaps(
        kept=_levels(kept, pyramid, image),
        kept_shares=kept_share(kept, pyramid)[image].tolist(),
        kept_share=kept_count / pyramid.valid_counts[image],
        covered_attention=covered,
        scores=None if output.token_scores is None else _levels(output.token_scores.float(), pyramid, image),
        attention=None if attention is None else _levels(attention.float(), pyramid, image),
        objects=None if objects is None else _levels(objects, pyramid, image),
        points={layer: found[image].float().cpu().numpy() for layer, found in (points or {}).items()},
        full_layers=[layer for layer, full in enumerate(getattr(output.selection, "full", ()), start=1) if full],
        pooling=_pooling(output, image),
    )


@contextmanager
def watch_token_maps(model: nn.Module) -> Iterator[Callable[[DetectorOutput], TokenMaps]]:
    """Collect what a detector's output does not hold while it runs in the block; yields output -> maps of one image."""
    with watch_object_rows(model.encoder) as rows, watch_sampled_points(model.decoder.encoder) as points:
        yield lambda output: token_maps(output, objects=object_tokens(output.selection, rows), points=points)


def _pooling(output: DetectorOutput, image: int) -> list[LevelMaps] | None:
    if not isinstance(output.selection, PolledTokens):
        return None
    return [_levels(weights.float(), output.pyramid, image) for weights in output.selection.pooling.unbind(1)]


def _levels(values: Tensor, pyramid: Pyramid, image: int) -> list[np.ndarray]:
    """Cut (B, N) into one (h, w) map a level of one image, without its padding."""
    maps = []
    for level, shape, (height, width) in zip(
        pyramid.split(values), pyramid.spatial_shapes, pyramid.valid_sizes[image].tolist(), strict=True
    ):
        maps.append(level[image].view(shape)[:height, :width].detach().cpu().numpy())
    return maps


def enlarge(level_map: np.ndarray, size: tuple[int, int], *, smooth: bool = False) -> np.ndarray:
    """Stretch an (h, w) map to the (height, width) of the image, cell by cell or interpolated between cell centres."""
    resampling = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    height, width = size
    return np.asarray(Image.fromarray(level_map.astype(np.float32)).resize((width, height), resampling))


def fused_scores(scores: LevelMaps, size: tuple[int, int]) -> np.ndarray:
    """Return the mean score of the levels for every pixel of a (height, width) image."""
    return np.mean([enlarge(level, size, smooth=True) for level in scores], axis=0)


def fused_attention(attention: LevelMaps, size: tuple[int, int]) -> np.ndarray:
    """Return the attention on the area of a finest cell, for every pixel; a coarse token's spreads evenly."""
    finest = max(level.size for level in attention)
    return np.sum([enlarge(level, size, smooth=True) * (level.size / finest) for level in attention], axis=0)
