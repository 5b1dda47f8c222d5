"""Pages that show kept tokens, token scores, pooling, the attention of the decoder, and all of these together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, PowerNorm
from PIL import Image
from scipy.ndimage import binary_erosion

from sparse_detr.visualization.page import ColorBar, Legend, Panel, compose_page
from sparse_detr.visualization.token_maps import LevelMaps, TokenMaps, enlarge, fused_attention, fused_scores

_KEPT_COLOR, _OBJECT_COLOR = (255, 205, 40), (0, 190, 255)
_OBJECT_OPACITY = 0.35
_LONG_SIDE = 1280
_DIMMED = 0.22
_HEAT_OPACITY = 0.62
_SHOWN_POOLED, _POOLED_COLUMNS, _SMALL_SIDE = 30, 6, 320


def kept_tokens_page(image: np.ndarray, maps: TokenMaps) -> np.ndarray:
    """Show the kept tokens of every level bright, object tokens among them tinted, and the rest of the image dimmed.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: tokens of the image.

    Returns:
        (H', W', 3) uint8 RGB, as all pages here.
    """
    panels = _kept_panels(image, maps)
    columns = 2 if len(panels) in (2, 4) else 3
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return compose_page("Kept tokens", _kept_remark(maps), rows, _kept_legend(maps))


def sampled_points_page(image: np.ndarray, maps: TokenMaps) -> np.ndarray:
    """Show where every decoder layer sampled its sparse tokens; points outside of the image are left out."""
    panels = _points_panels(image, maps)
    rows = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    return compose_page("Sparse tokens", "sampled around the best queries of the layer before", rows)


def heat_page(image: np.ndarray, heat: Heat) -> np.ndarray:
    """Show a quantity over tokens on all levels together, large, and on every level below."""
    levels = [
        Panel(_heat_picture(image, level, heat.bar), _level_name(level, index))
        for index, level in enumerate(heat.levels)
    ]
    levels[0] = replace(levels[0], bar=heat.bar)
    return compose_page(heat.title, "", [[_fused_panel(image, heat, title="All levels")], levels])


def pooled_tokens_page(image: np.ndarray, maps: TokenMaps) -> np.ndarray:
    """Show what is polled, where the pooled tokens look together, and the weights of every pooled token.

    The most concentrated pooled token, with the highest single weight, comes first; thirty are shown.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: tokens of the image, with pooled tokens.
    """
    heat = pooling_heat(image, maps)
    assert heat is not None
    assert maps.pooling is not None
    size = _picture_size(image, _SMALL_SIDE)
    slots = sorted((_pooling_map(levels, size) for levels in maps.pooling), key=lambda slot: -float(slot.max()))
    shown = slots[:_SHOWN_POOLED]
    bar = ColorBar(norm=_square_root_norm(np.stack(shown)), colormap=colormaps["inferno"])
    sheet = [
        Panel(_heat_picture(image, slot, bar, long_side=_SMALL_SIDE), str(number), f"up to {slot.max():.1%}")
        for number, slot in enumerate(shown, 1)
    ]
    blank = Panel(np.full_like(sheet[0].picture, 255), "")
    sheet[0] = replace(sheet[0], bar=bar)
    sheet += [blank] * (-len(sheet) % _POOLED_COLUMNS)
    rows = [sheet[i : i + _POOLED_COLUMNS] for i in range(0, len(sheet), _POOLED_COLUMNS)]
    top = [*_kept_panels(image, maps), _fused_panel(image, heat, title=heat.title)]
    which = "each pooled token" if len(shown) == len(slots) else f"the {len(shown)} most concentrated pooled tokens"
    remark = f"{_kept_remark(maps)}. Below: the share of every token in {which}"
    return compose_page("Polled and pooled tokens", remark, [top, *rows])


OVERVIEW_ZOOM = 2.0
"""Of the picture of the detections: on the page, it is shown with a third to a half of its width."""


def overview_page(
    image: np.ndarray, detections: np.ndarray, maps: TokenMaps, *, title: str, truth: np.ndarray | None = None
) -> np.ndarray:
    """Put detections, token scores, the decoder's attention and the kept tokens of every level on one page.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: picture of the detections, of the image's proportions, drawn with `OVERVIEW_ZOOM`.
        maps: tokens of the image; those of a dense encoder, without scores and all kept, are not shown.
        title: heading of the page, such as the name of the image.
        truth: picture of the true boxes, which shares the first row with the detections; None for none.
    """
    found = (score_heat(image, maps), pooling_heat(image, maps), attention_heat(image, maps))
    heats = [heat for heat in found if heat]
    shown = [_fused_panel(image, heat, title=heat.title) for heat in heats]
    found_panel = Panel(detections, "Detections")
    if truth is None:
        rows = [[found_panel, *shown]]
    else:
        rows = [[Panel(truth, "True boxes"), found_panel], *([shown] if shown else [])]
    if maps.points:
        rows.append(_points_panels(image, maps))
    if maps.scores is None and not maps.is_selective:
        return compose_page(title, "", rows)
    return compose_page(title, _kept_remark(maps), [*rows, _kept_panels(image, maps)], _kept_legend(maps))


@dataclass(frozen=True, eq=False)
class Heat:
    """A quantity over tokens.

    Args:
        title: what it is.
        remark: how `fused` is made of `levels`.
        levels: (h, w) map of every level.
        bar: colours of `levels`.
        fused: (H, W) map of all levels at the size of a picture.
        fused_bar: colours of `fused`.
    """

    title: str
    remark: str
    levels: LevelMaps
    bar: ColorBar
    fused: np.ndarray
    fused_bar: ColorBar


def score_heat(image: np.ndarray, maps: TokenMaps) -> Heat | None:
    """Colour token scores, all levels on one scale, since they compete; None without a scorer."""
    if maps.scores is None:
        return None
    scores = _flat(maps.scores)
    kept = scores[_flat(maps.kept)]
    mark = (float(kept.min()), "kept from here") if 0 < kept.size < scores.size else None
    fused = fused_scores(maps.scores, _picture_size(image))
    bar, fused_bar = (
        ColorBar(norm=Normalize(*_spread(values)), colormap=colormaps["viridis"], mark=mark)
        for values, mark in ((scores, mark), (fused, None))
    )
    remark = "mean of all levels"
    return Heat("Token scores", remark, levels=maps.scores, bar=bar, fused=fused, fused_bar=fused_bar)


def attention_heat(image: np.ndarray, maps: TokenMaps) -> Heat | None:
    """Colour the decoder attention map, by its square root, since few tokens get most of it; None without a map."""
    if maps.attention is None:
        return None
    fused = fused_attention(maps.attention, _picture_size(image))
    bar, fused_bar = (
        ColorBar(norm=_square_root_norm(values), colormap=colormaps["inferno"])
        for values in (_flat(maps.attention), fused)
    )
    remark = "of all queries, all levels"
    return Heat("Decoder attention", remark, levels=maps.attention, bar=bar, fused=fused, fused_bar=fused_bar)


def _points_panels(image: np.ndarray, maps: TokenMaps) -> list[Panel]:
    return [
        Panel(_points_picture(image, points), f"Layer {layer + 1}", f"{len(points):,} points")
        for layer, points in maps.points.items()
    ]


def _points_picture(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Dim the image, and draw a square of ten by ten pixels at every point."""
    picture = (_resized(image) * 0.5).astype(np.uint8)
    height, width = picture.shape[:2]
    inside = points[((points >= 0) & (points < 1)).all(-1)]
    for column, row in (inside * [width, height]).astype(int).tolist():
        picture[max(row - 5, 0) : row + 5, max(column - 5, 0) : column + 5] = _KEPT_COLOR
    return picture


def pooling_heat(image: np.ndarray, maps: TokenMaps) -> Heat | None:
    """Colour the mean weight of a token in the pooled tokens, by its square root; None without pooled tokens."""
    if maps.pooling is None:
        return None
    levels = [np.mean(slots, axis=0) for slots in zip(*maps.pooling, strict=True)]
    fused = _pooling_map(levels, _picture_size(image))
    bar, fused_bar = (
        ColorBar(norm=_square_root_norm(values), colormap=colormaps["inferno"]) for values in (_flat(levels), fused)
    )
    remark = f"mean of {len(maps.pooling)} pooled tokens"
    return Heat("Pooling weights", remark, levels=levels, bar=bar, fused=fused, fused_bar=fused_bar)


def _pooling_map(levels: LevelMaps, size: tuple[int, int]) -> np.ndarray:
    """Return the weights on all levels together; those of one level stay cells, with sharp edges to polled tokens."""
    return levels[0] if len(levels) == 1 else fused_attention(levels, size)


def _kept_panels(image: np.ndarray, maps: TokenMaps) -> list[Panel]:
    objects = maps.objects or [np.zeros_like(kept) for kept in maps.kept]
    return [
        Panel(_kept_picture(image, kept, related), _level_name(kept, level), f"{share:.0%} kept")
        for level, (kept, related, share) in enumerate(zip(maps.kept, objects, maps.kept_shares, strict=True))
    ]


def _kept_legend(maps: TokenMaps) -> Legend:
    """Return a legend if there are two kinds of kept tokens to tell apart."""
    if maps.objects is None:
        return ()
    count = sum(int(level.sum()) for level in maps.objects)
    return (
        (_KEPT_COLOR, "foreground tokens, which the first encoder layer refines"),
        (_OBJECT_COLOR, f"fine-grained: {count:,} object tokens that attend to each other in the last"),
    )


def _kept_remark(maps: TokenMaps) -> str:
    total, kept = sum(level.size for level in maps.kept), sum(int(level.sum()) for level in maps.kept)
    remark = f"{kept:,} of {total:,} tokens kept ({maps.kept_share:.0%})"
    if maps.pooling is not None:
        remark += f", the others pooled into {len(maps.pooling)}"
    if not isnan(maps.covered_attention):
        remark += f", which get {maps.covered_attention:.0%} of the decoder's attention"
    if maps.full_layers:
        remark += f"; all are refined in encoder layer {', '.join(map(str, maps.full_layers))}"
    return remark


def _level_name(level_map: np.ndarray, level: int) -> str:
    height, width = level_map.shape
    return f"Level {level + 1}: {width} × {height}"


def _kept_picture(image: np.ndarray, kept: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Dim and grey out what is not kept, tint the object tokens, and draw the borders between."""
    picture = _resized(image)
    mask, related = (enlarge(level, picture.shape[:2]) > 0.5 for level in (kept, objects))
    dimmed = picture.mean(-1, keepdims=True) * _DIMMED
    shown = np.where(mask[..., None], picture, dimmed)
    shown[related] = (1 - _OBJECT_OPACITY) * shown[related] + _OBJECT_OPACITY * np.array(_OBJECT_COLOR)
    shown[_border(mask)] = _KEPT_COLOR
    shown[_border(related)] = _OBJECT_COLOR
    return shown.astype(np.uint8)


def _border(mask: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: the outermost two pixels of the True regions, but not along the edge of the image."""
    return mask & ~binary_erosion(mask, iterations=2, border_value=1)


def _fused_panel(image: np.ndarray, heat: Heat, *, title: str) -> Panel:
    return Panel(_heat_picture(image, heat.fused, heat.fused_bar), title, heat.remark, heat.fused_bar)


def _heat_picture(image: np.ndarray, values: np.ndarray, bar: ColorBar, *, long_side: int = _LONG_SIDE) -> np.ndarray:
    """Blend the colours of (h, w) values over the grey image."""
    picture = _resized(image, long_side)
    grey = picture.mean(-1, keepdims=True)
    colors = bar.colormap(bar.norm(enlarge(values, picture.shape[:2])), bytes=True)[..., :3]
    return ((1 - _HEAT_OPACITY) * grey + _HEAT_OPACITY * colors).astype(np.uint8)


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value, but for a few extremes."""
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def _square_root_norm(values: np.ndarray) -> Normalize:
    return PowerNorm(0.5, vmin=0, vmax=max(float(np.percentile(values, 99.5)), 1e-6))


def _picture_size(image: np.ndarray, long_side: int = _LONG_SIDE) -> tuple[int, int]:
    """Return the (height, width) that pictures are drawn at."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(image: np.ndarray, long_side: int = _LONG_SIDE) -> np.ndarray:
    height, width = _picture_size(image, long_side)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


def _flat(levels: LevelMaps) -> np.ndarray:
    return np.concatenate([level.ravel() for level in levels])
