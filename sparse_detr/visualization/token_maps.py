"""Maps of the tokens of one image: kept tokens, scores, pooling and attention, as arrays for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from sparse_detr.analysis.tokens import covered_attention, kept_share
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
        scores: token scores; None for a dense encoder.
        attention: decoder attention map; None if it was not computed.
        objects: bool, True on kept tokens that attended to each other; None for an encoder without object tokens.
        pooling: of every pooled token, the weights of the tokens that it is the mean of; None without pooled tokens.
    """

    kept: LevelMaps
    kept_shares: Sequence[float]
    kept_share: float
    covered_attention: float
    scores: LevelMaps | None
    attention: LevelMaps | None
    objects: LevelMaps | None = None
    pooling: Sequence[LevelMaps] | None = None


def token_maps(output: DetectorOutput, image: int = 0, *, objects: Tensor | None = None) -> TokenMaps:
    """Take the maps of one image of the batch out of a detector's output, and of (B, N) bool `objects`."""
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
        pooling=_pooling(output, image),
    )


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
