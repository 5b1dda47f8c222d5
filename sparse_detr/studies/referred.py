"""How many of the encoder's tokens the decoder refers to (Sparse DETR, appendix A.9, figure 10).

A token is referred to if a sampling point of the decoder's deformable attention, of any query, layer, head and point,
lies in its cell. The bilinear ratio counts all tokens that a point is interpolated from. As a point may have hardly any
weight, the tokens that hold 90 % of the attention are counted too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_detr.analysis.tables import mean_and_deviation
from sparse_detr.analysis.tokens import kept_share, referenced_tokens
from sparse_detr.errors import UserError
from sparse_detr.studies.driver import Conclusion, Result, Results, Study
from sparse_detr.studies.trained import Trained, add_trained, facts_of, trained_of

PAPER, WITHIN = 0.45, 0.10
PAPER_DENSITY = 300 * 6 * 8 * 4 / (107 * 130)
"""Sampling points per token of the finest level in the paper: queries, layers, heads and points of a level, over the
tokens of an image of 850 x 1040 pixels at stride 8."""
MOST = 0.9
"""Share of the attention whose tokens are counted too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    add_trained(parser)
    parser.add_argument("--max-images", type=int, metavar="N", help="of the evaluation data, the first N (all)")


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    if args.max_images is not None and args.max_images < 1:
        raise UserError(f"--max-images {args.max_images} leaves nothing to count; give 1 or more")
    models = trained_of(args)
    return Study(
        name="referred",
        parts={model.key: lambda model=model: measure(model, args.opts, args.max_images) for model in models},
        settings={**facts_of(args), "max_images": args.max_images},
        table=table,
        draw=draw,
        conclude=conclude,
        made_from={model.key: model.made_from(args.opts) for model in models},
    )


@contextmanager
def watch_samples(model: nn.Module) -> Iterator[list[Any]]:
    """Collect the decoder's samples of every layer while the block runs; the last call's stay in the list."""
    samples: list[Any] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        samples[:] = inputs[0] or []

    handle = model.attention_map.register_forward_pre_hook(note)  # type: ignore[union-attr]
    try:
        yield samples
    finally:
        handle.remove()


@torch.no_grad()
def measure(trained: Trained, overrides: Sequence[str], max_images: int | None) -> Result:
    """Return the ratios of every image of the evaluation data.

    Raises:
        UserError: the model's decoder has no sampling points, or a batch of the config has several images.
    """
    from tqdm import tqdm

    model, run = trained.load(overrides)
    images: list[dict[str, Any]] = []
    loader = run.evaluation_sets[0].build_loader()
    with watch_samples(model) as samples:
        for batch in tqdm(islice(loader, max_images), desc=trained.key, unit="image", disable=None):
            output = model.outputs(batch)
            if not samples:
                raise UserError(
                    f"the decoder of {trained.key} has no sampling points; give one with deformable attention"
                )
            locations = torch.cat([layer.locations for layer in samples], 1)
            if len(batch) > 1:
                raise UserError(f"a batch has {len(batch)} images; give dataloader.test.batch_size=1")
            images.append(ratios_of(locations, output.attention_map, output.pyramid))
    if not images:
        raise UserError(f"the evaluation data of {trained.config} have no image")
    return {"name": trained.name, "seed": trained.seed, **summary_of(images)}


def ratios_of(locations: torch.Tensor, attention_map: torch.Tensor, pyramid: Any) -> dict[str, Any]:
    """Return the ratios of one image.

    Args:
        locations: (1, Q, M, L, P, 2) of all layers together, (x, y) in [0, 1] of the padded levels.
        attention_map: (1, N), above 0 on tokens that a point is interpolated from.
        pyramid: geometry.
    """
    hit = referenced_tokens(locations, pyramid)
    valid = int((~pyramid.padding_mask).sum())
    attention = attention_map[0][~pyramid.padding_mask[0]].double().sort(descending=True).values
    needed = int((attention.cumsum(0) < MOST * attention.sum()).sum()) + 1
    finest = locations[0, ..., 0, :, 0].numel() / int(pyramid.valid_sizes[0, 0].prod())
    return {
        "ratio": int(hit.sum()) / valid,
        "bilinear": int((attention > 0).sum()) / valid,
        "most": needed / valid,
        "levels": kept_share(hit, pyramid)[0].tolist(),
        "density": finest,
    }


def summary_of(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the ratio of every image, and the means over images."""
    return {
        "ratios": [round(image["ratio"], 4) for image in images],
        "ratio": statistics.fmean(image["ratio"] for image in images),
        **{name: statistics.fmean(image[name] for image in images) for name in ("bilinear", "most", "density")},
        "levels": [statistics.fmean(values) for values in zip(*(image["levels"] for image in images), strict=True)],
    }


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a model: its ratio over images, and the means of the others."""
    levels = max(len(result["levels"]) for result in results.values())
    head = ["model", "images", "referred to, %", "from", "to", "bilinear, %"]
    head += [f"level {level}, %" for level in range(levels)]
    head += [f"hold {MOST:.0%} of the attention, %", "points per token of level 0"]
    rows = []
    for key, result in results.items():
        percent = [100 * ratio for ratio in result["ratios"]]
        cells = [key, f"{len(percent)}", mean_and_deviation(percent), f"{min(percent):.1f}", f"{max(percent):.1f}"]
        cells += [f"{100 * result['bilinear']:.1f}", *(f"{100 * level:.1f}" for level in result["levels"])]
        cells += [""] * (levels - len(result["levels"]))
        rows.append([*cells, f"{100 * result['most']:.1f}", f"{result['density']:.1f}"])
    return head, rows


def draw(results: Results, path: Path) -> None:
    """Draw the histogram over images, models side by side, with the paper's mean."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("share of the tokens that the decoder refers to, %", "images")
    values = [[100 * ratio for ratio in result["ratios"]] for result in results.values()]
    low, high = min(map(min, values)), max(map(max, values))
    low, high = 2 * (min(low, 100 * PAPER) // 2), 2 * (max(high, 100 * PAPER) // 2 + 1)
    bins = [low + 2 * step for step in range(round((high - low) / 2) + 1)]
    axes.hist(values, bins=bins, label=[f"{key} ({100 * results[key]['ratio']:.1f} %)" for key in results])
    axes.axvline(100 * PAPER, color="black", linestyle="--", label=f"mean in the paper, about {100 * PAPER:.0f} %")
    axes.yaxis.get_major_locator().set_params(integer=True)
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Compare the mean over models and images with the paper's."""
    mean = statistics.fmean(result["ratio"] for result in results.values())
    most = statistics.fmean(result["most"] for result in results.values())
    density = statistics.fmean(result["density"] for result in results.values())
    cautions = []
    if not 1 / 1.5 < density / PAPER_DENSITY < 1.5:
        cautions.append(
            f"a token of the finest level has {density:.1f} sampling points here and {PAPER_DENSITY:.1f} in the paper, "
            "and more points reach more tokens"
        )
    if (images := min(len(result["ratios"]) for result in results.values())) < 50:
        cautions.append(f"{images} images are few")
    return Conclusion(
        abs(mean - PAPER) <= WITHIN,
        f"the decoder refers to about {PAPER:.0%} of the tokens (rule: within {100 * WITHIN:.0f} points)",
        f"to {mean:.1%}, and {most:.1%} of all tokens hold {MOST:.0%} of its attention",
        cautions,
    )
