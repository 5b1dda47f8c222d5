"""The cost of models over rho: GFLOPs and weights, with the papers' numbers beside (Sparse DETR, tables 1 and 2).

One multiply-add is one FLOP, as in the papers; one random image of 850 x 1040 pixels, as in the public code.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from sparse_detr.checks import check_share
from sparse_detr.config.kinds import Config
from sparse_detr.errors import UserError
from sparse_detr.provenance import config_digest
from sparse_detr.studies.driver import Conclusion, Result, Results, Study

IMAGE_SIZE = (850, 1040)
PUBLISHED: dict[str, dict[float | None, float]] = {
    "SparseDETR/deformable_detr_topk_r50.py": {None: 177.3},
    "SparseDETR/sparse_detr_r50_rho10.py": {0.1: 105.4, 0.2: 112.9, 0.3: 120.5, 0.4: 128.0, 0.5: 135.6},
    "SparseDETR/deformable_detr_topk_swin_t.py": {None: 184.8},
    "SparseDETR/sparse_detr_swin_t_rho10.py": {0.1: 113.4, 0.2: 121.0, 0.3: 128.5, 0.4: 136.1, 0.5: 143.7},
    "DeformableDETR/deformable_detr_r50.py": {None: 172.9},
}
"""Config -> rho -> GFLOPs of the whole model in the public repository of Sparse DETR; None is the model's own rho."""
CLASSES = "model.num_classes=91"
DENSE_WITHIN, SPARSE_WITHIN = 0.01, 0.05
"""The published numbers of sparse rows seem to be means over images that are 4 % smaller on average; a dense row is of
the same image."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="CONFIG",
        help="config files, or names like quick/sparse_detr_mnv2.py (default: those with a published number)",
    )
    parser.add_argument("--rhos", nargs="+", type=float, metavar="R", help="shares of the tokens, of --models (own)")
    parser.add_argument(
        "--image-size", nargs=2, type=int, default=list(IMAGE_SIZE), metavar=("H", "W"), help="pixels (850 1040)"
    )


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    for rho in args.rhos or ():
        check_share("--rhos", rho)
    if min(args.image_size) < 32:
        raise UserError(f"--image-size {' '.join(map(str, args.image_size))} is too small; give 32 pixels or more")
    size = (args.image_size[0], args.image_size[1])
    published = {config: dict(rows) for config, rows in PUBLISHED.items()}
    if args.models:
        published = {config: dict.fromkeys(args.rhos or [None]) for config in args.models}
    elif args.rhos:
        raise UserError("--rhos needs --models; without them, the rhos are the published ones")
    compared = size == IMAGE_SIZE and not args.models
    parts, made_from = {}, {}
    for config, rows in published.items():
        sources = {"config": config_digest(_load(config, with_published=compared))}
        for rho, number in rows.items():
            key = f"{config if args.models else _name(config)} at {f'{rho:g}' if rho else 'its own'}"
            parts[key] = partial(measure, config, rho, size, number if compared else None)
            made_from[key] = sources
    return Study("complexity", parts, {"image_size": size}, table, draw, conclude, made_from)


def _name(config: str) -> str:
    return Path(config).stem.partition("_rho")[0]


def _load(config: str, *, with_published: bool) -> Config:
    """Load a config by its path or its name in the model zoo; the published numbers are of models of 91 classes."""
    from sparse_detr.config.load import load_config
    from sparse_detr.model_zoo import get_config_file

    path = config if Path(config).is_file() else get_config_file(config)
    return load_config(path, [CLASSES] if with_published else [])


def measure(config: str, rho: float | None, size: tuple[int, int], published: float | None) -> Result:
    """Return the GFLOPs of one image and the number of weights that inference uses.

    Args:
        config: path, or name in the model zoo.
        rho: share of the tokens; None for the model's own budget.
        size: (h, w) of the image.
        published: GFLOPs of the whole model; None if there are none.

    Raises:
        UserError: the config cannot be used, or its model has no rho to choose.
    """
    import torch

    from sparse_detr.analysis.cost import gigaflops
    from sparse_detr.budget import check_fits
    from sparse_detr.config.model import build_detector

    model = build_detector(_load(config, with_published=published is not None), device="cpu").eval()
    check_fits("--rhos", rho, model)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    flops = gigaflops(model, image, rho)
    training_only = sum(p.numel() for part in (model.encoder_heads, model.denoising) for p in part.parameters())
    return {
        "name": _name(config),
        "rho": rho or model.keep_ratio,
        "mean_keep_ratio": model.mean_keep_ratio if rho is None else rho,
        **{f"{part}_gigaflops": value for part, value in flops.items()},
        "weights": sum(p.numel() for p in model.parameters() if p.requires_grad) - training_only,
        "published_gigaflops": published,
    }


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a model and rho."""
    head = [
        "model",
        "rho, %",
        "trained weights",
        "encoder GFLOPs",
        "decoder GFLOPs",
        "all GFLOPs",
        "published",
        "difference",
    ]
    rows = []
    for result in results.values():
        number = result["published_gigaflops"]
        beside = ["", ""] if number is None else [f"{number:.1f}", f"{_difference(result):+.1%}"]
        flops = [f"{result[f'{part}_gigaflops']:.2f}" for part in ("encoder", "decoder", "total")]
        rows.append([result["name"], f"{100 * result['rho']:g}", f"{result['weights']:,}", *flops, *beside])
    return head, rows


def _difference(result: Result) -> float:
    return result["total_gigaflops"] / result["published_gigaflops"] - 1


def draw(results: Results, path: Path) -> None:
    """Draw GFLOPs over rho, the published ones as crosses."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("share of the tokens that the encoder refines, %", "GFLOPs of the whole model")
    for number, name in enumerate(dict.fromkeys(result["name"] for result in results.values())):
        own = sorted((one for one in results.values() if one["name"] == name), key=lambda one: one["rho"])
        x = [100 * one["rho"] for one in own]
        axes.plot(x, [one["total_gigaflops"] for one in own], color=f"C{number}", marker="o", label=name)
        crosses = [(100 * one["rho"], one["published_gigaflops"]) for one in own if one["published_gigaflops"]]
        if crosses:
            axes.plot(*zip(*crosses, strict=True), color=f"C{number}", marker="x", markersize=9, linestyle="")
    if any(one["published_gigaflops"] for one in results.values()):
        axes.plot([], [], color="gray", marker="x", linestyle="", label="published")
    axes.set_ylim(0, 1.08 * max(one["total_gigaflops"] for one in results.values()))
    axes.set_xlim(0, 105)
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Compare every row that has a published number with it."""
    finding = (
        f"the published GFLOPs (rule: within {DENSE_WITHIN:.0%} for dense models, {SPARSE_WITHIN:.0%} for sparse ones, "
        "whose numbers seem to be means over images that are about 4 % smaller)"
    )
    compared: dict[str, Any] = {key: one for key, one in results.items() if one["published_gigaflops"]}
    if not compared:
        return Conclusion(None, finding, "no row has a published number")
    beyond = {
        key: abs(_difference(one)) / (DENSE_WITHIN if one["rho"] == 1 else SPARSE_WITHIN)
        for key, one in compared.items()
    }
    worst = max(beyond, key=lambda key: beyond[key])
    found = f"the row that is furthest from its limit is {worst} with {_difference(compared[worst]):+.1%}"
    return Conclusion(beyond[worst] <= 1, finding, found)
