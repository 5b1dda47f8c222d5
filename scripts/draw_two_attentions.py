"""Draw the two pictures of docs/two_deformable_attentions.md.

    python train_net.py --config-file configs/quick/deformable_detr_dat.py
    python scripts/draw_two_attentions.py output/deformable_detr_dat/model_final.pth

`points.jpg`: where one query of Deformable DETR's encoder samples, and the points that all queries of a DAT share, in
one image, by one trained model. `cost.png`: FLOPs of both against the size of the image; weights do not matter.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor, nn

from sparse_detr.analysis.flops import register_flop_handles
from sparse_detr.backbones.dat import DeformedKeyAttention, KeyPoints
from sparse_detr.checkpoint import load_file
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.data.images import read_image
from sparse_detr.layers import AttentionSamples, MultiScaleDeformableAttention
from sparse_detr.structures import Pyramid, map_size

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of the backend

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/quick/deformable_detr_dat.py"
IMAGE = ROOT / "datasets/sample/val/2019_YELL_2_541000_4977000_image_crop_x0416_y0345.png"
SIDE = 256
"""Pixels of the square that is cut out of the image."""
QUERY = (14.5 / 32, 16.5 / 32)
"""Where the query is, (x, y) in [0, 1] of the square: the centre of a cell of stride 8."""
GROUP_COLORS = ("black", "magenta", "yellow", "cyan")
"""Of the groups of heads of a DAT; other colours than those of the heads above them."""
STAR = {"marker": "*", "s": 330, "c": "white", "edgecolors": "black", "linewidths": 1.2, "zorder": 5}


class Attentions(NamedTuple):
    """What both attentions do in one image, of `SIDE` pixels.

    Args:
        samples: of the query of Deformable DETR: locations (M, L, P, 2) as (x, y) in [0, 1], weights (M, L, P).
        points: of the DAT.
        weights: (M, h * w), of a query of the DAT at the same place.
        map_size: (H, W) of the map that is sampled at the points.
    """

    samples: AttentionSamples
    points: KeyPoints
    weights: Tensor
    map_size: tuple[int, int]

    def places(self, positions: Tensor) -> Tensor:
        """Return where positions (..., 2) are sampled in the image, flat, as (x, y) in [0, 1]."""
        height, width = self.map_size
        size = positions.new_tensor([width, height])
        return (((positions.flip(-1) + 1) / 2 * (size - 1) + 0.5) / size).flatten(0, -2)


def main() -> int:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", help="checkpoint of the config; without it, the model is not trained")
    parser.add_argument("--config-file", default=str(CONFIG), help="a Deformable DETR on a DAT (%(default)s)")
    parser.add_argument("--image", default=str(IMAGE), help="(%(default)s)")
    parser.add_argument(
        "--label", default="narrow model, trained on the sample data", help="for the title (%(default)s)"
    )
    parser.add_argument("--output", default=str(ROOT / "docs/two_deformable_attentions"), help="folder (%(default)s)")
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = build_detector(load_config(args.config_file), device="cpu").eval()
    if args.weights:
        model.load_state_dict(load_file(args.weights)["model"])
    label = args.label if args.weights else "narrow model, NOT trained: random weights"
    image = read_image(args.image)[:SIDE, :SIDE]
    draw_points(np.asarray(image), observe(model, image), label).savefig(
        output / "points.jpg", dpi=80, pil_kwargs={"quality": 88}
    )
    draw_cost(count_cost()).savefig(output / "cost.png", dpi=80)
    return 0


@torch.no_grad()
def observe(model: nn.Module, image: np.ndarray) -> Attentions:
    """Run a detector on an image and look at its last encoder layer, and at the last D block of the third stage."""
    encoder = [part for part in model.encoder.modules() if isinstance(part, MultiScaleDeformableAttention)][-1]
    backbone = [part for part in model.backbone.stages[2].modules() if isinstance(part, DeformedKeyAttention)][-1]
    seen: dict[nn.Module, tuple[Any, ...]] = {}
    hooks = [
        part.register_forward_pre_hook(
            lambda module, inputs, options: seen.update({module: (*inputs, *options.values())}), with_kwargs=True
        )
        for part in (encoder, backbone)
    ]
    model([{"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))}])
    for hook in hooks:
        hook.remove()
    query, reference, _, pyramid = seen[encoder]
    samples = encoder.sample(query, reference, pyramid)
    token = finest_token(pyramid)
    (x,) = seen[backbone]
    projected = backbone.proj_q(x)
    points = backbone.points(projected)
    row, column = (int(place * size) for place, size in zip(QUERY[::-1], x.shape[2:], strict=True))
    keys = backbone.proj_k(backbone.sample(x, points)).unflatten(1, (backbone.num_heads, -1)).flatten(3)[0]
    one = projected[0, :, row, column].unflatten(0, (backbone.num_heads, -1))
    logits = torch.einsum("md,mdk->mk", one, keys) / one.shape[1] ** 0.5
    logits += backbone.bias(projected, points)[0, :, row * x.shape[3] + column]
    samples = AttentionSamples(samples.locations[0, token], samples.weights[0, token])
    return Attentions(samples, KeyPoints(points.grid, points.moved[0]), logits.softmax(-1), map_size(x))


def finest_token(pyramid: Pyramid) -> int:
    """Return the index of the token of the finest level at `QUERY`."""
    height, width = (int(size) for size in pyramid.spatial_shapes[0])
    return int(QUERY[1] * height) * width + int(QUERY[0] * width)


def draw_points(image: np.ndarray, seen: Attentions, label: str) -> Any:
    """Draw the levels of the one attention above, the groups of the other below."""
    num_levels, num_groups = seen.samples.weights.shape[1], len(seen.points.moved)
    columns = max(num_levels, num_groups + 1)
    figure, axes = plt.subplots(2, columns, figsize=(5.2 * columns, 11.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for level in range(num_levels):
        draw_level(show(axes[0, level], image), seen.samples, level)
    for group in range(num_groups):
        draw_group(show(axes[1, group], image), seen, group)
    draw_weights(show(axes[1, num_groups], image), seen)
    total = seen.samples.weights.numel()
    heads = seen.samples.weights.shape[0]
    figure.suptitle(
        f"Above: Deformable DETR. ONE query (star) has its own {total} points; another query has others.\n"
        f"Below: DAT. ALL queries share the same {seen.points.grid[..., 0].numel()} points of the image."
        f"\n({label})",
        fontsize=17,
    )
    marks = [
        Line2D([], [], marker="o", ls="", ms=9, color=plt.get_cmap("tab10")(m), label=f"head {m}") for m in range(heads)
    ]
    axes[0, 0].legend(handles=marks, fontsize=9, loc="lower left", ncols=2, framealpha=0.8)
    return figure


def show(axis: Axes, image: np.ndarray) -> Axes:
    """Show the image, paler than it is."""
    axis.imshow(image // 2 + 110, extent=(0, 1, 1, 0))
    axis.set(xlim=(-0.09, 1.09), ylim=(1.09, -0.09))
    return axis


def draw_level(axis: Axes, samples: AttentionSamples, level: int) -> None:
    """Draw the samples of a level: colour is the head, area the weight."""
    for head, (places, weights) in enumerate(zip(samples.locations[:, level], samples.weights[:, level], strict=True)):
        axis.scatter(*places.T, s=15 + 3000 * weights, color=plt.get_cmap("tab10")(head), edgecolors="black", lw=0.6)
    axis.scatter(*QUERY, **STAR)
    share = samples.weights[:, level].sum() / samples.weights.sum()
    axis.set_title(f"stride {8 * 2**level}: {share:.0%} of the attention", fontsize=14)


def draw_group(axis: Axes, seen: Attentions, group: int) -> None:
    """Draw the regular grid, and arrows to the moved points of a group."""
    grid, moved = seen.places(seen.points.grid), seen.places(seen.points.moved[group])
    axis.scatter(*grid.T, s=10, c="white", edgecolors="black", linewidths=0.4)
    arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004, "headwidth": 3.5, "headlength": 4}
    axis.quiver(*grid.T, *(moved - grid).T, color=GROUP_COLORS[group], **arrow)
    axis.set_title(f"group {group} of heads: grid and moved points", fontsize=14)


def draw_weights(axis: Axes, seen: Attentions) -> None:
    """Draw all points of all groups: the area is the weight that the query gives to a point."""
    for group, weights in enumerate(seen.weights.chunk(len(seen.points.moved))):
        places = seen.places(seen.points.moved[group])
        share = weights.mean(0)
        axis.scatter(*places.T, s=6000 * share, color=GROUP_COLORS[group], edgecolors="white", lw=0.4)
    axis.scatter(*QUERY, **STAR)
    axis.set_title("weights that one query (star) gives to all points", fontsize=14)


SIZES = (128, 224, 320, 480, 640, 800)
CHANNELS, HEADS = 384, 12


def count_cost() -> dict[str, list[float]]:
    """Count GFLOPs of an attention over a map of stride 16 and 384 channels, as in the third stage of DAT-T."""
    register_flop_handles()
    options = {"channels": CHANNELS, "num_heads": HEADS, "num_groups": 3, "map_size": (14, 14), "kernel_size": 5}
    kinds: dict[str, nn.Module] = {
        "full attention": Full(),
        "DAT, a key for every cell (2022)": DeformedKeyAttention(**options),
        "DAT, a key for every 4 x 4 cells": DeformedKeyAttention(**options, stride=4),
        "Deformable DETR, 12 heads x 16 points a query": Scattered(),
    }
    return {name: [gigaflops(kind, size // 16) for size in SIZES] for name, kind in kinds.items()}


@torch.no_grad()
def gigaflops(attention: nn.Module, side: int) -> float:
    """Count the GFLOPs of an attention over a map of `side` x `side` cells."""
    from fvcore.nn import FlopCountAnalysis

    counted = FlopCountAnalysis(attention.eval(), (torch.zeros(1, CHANNELS, side, side),))
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return counted.total() / 1e9


class Full(nn.Module):
    """All cells attend to all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Attend in maps (1, C, H, W)."""
        query, key, value = self.qkv(x.flatten(2).mT).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(y.transpose(1, 2).flatten(2))


class Scattered(nn.Module):
    """All cells attend to 16 points a head of one map, as many as 4 points in each of 4 levels."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiScaleDeformableAttention(embed_dim=CHANNELS, num_heads=HEADS, num_levels=1, num_points=16)

    def forward(self, x: Tensor) -> Tensor:
        """Attend in maps (1, C, H, W)."""
        tokens, shape = x.flatten(2).mT, map_size(x)
        pyramid = Pyramid.unpadded([shape], 1, device=tokens.device)
        return self.attention(tokens, tokens.new_zeros(1, tokens.shape[1], 1, 2), tokens, pyramid)


def draw_cost(cost: dict[str, list[float]]) -> Any:
    """Draw GFLOPs against the side of a square image."""
    figure, axis = plt.subplots(figsize=(8.5, 5.4), layout="constrained")
    styles = ("k:", "C3-", "C1--", "C0-.")
    for (name, values), style in zip(cost.items(), styles, strict=True):
        axis.plot(SIZES, values, style, marker="o", lw=2.2, label=name)
    axis.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel="GFLOPs of one attention layer")
    axis.set_xticks(SIZES, [str(size) for size in SIZES], minor=False)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.4)
    axis.set_title("One map of stride 16, 384 channels, 12 heads: counted, projections included")
    axis.legend(handlelength=4)
    return figure


if __name__ == "__main__":
    sys.exit(main())
