"""Count parameters and FLOPs of the projects' configs, and write them into the README of each project.

    python scripts/count_cost.py                 every table
    python scripts/count_cost.py DINO FocusDETR  those of these projects
    python scripts/count_cost.py encoders        only the table of encoders

Detectron2's counter runs in eval mode on one random image, with 91 classes as in the papers' repositories. One
multiply-add is one FLOP. Configs of equal models share a row.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from sparse_detr.analysis.cost import gigaflops
from sparse_detr.analysis.tables import fill_readme, markdown_rows
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import run_script
from sparse_detr.studies.complexity import CLASSES, IMAGE_SIZE, PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = {
    "SparseDETR/configs/deformable_detr_topk_r50.py": f"{PUBLISHED['SparseDETR/deformable_detr_topk_r50.py'][None]}",
    **{
        f"SparseDETR/configs/sparse_detr_r50_rho{round(100 * rho)}.py": f"{published}"
        for rho, published in PUBLISHED["SparseDETR/sparse_detr_r50_rho10.py"].items()
    },
    "DeformableDETR/configs/deformable_detr_r50.py": f"{PUBLISHED['DeformableDETR/deformable_detr_r50.py'][None]}",
    "FocusDETR/configs/focus_deformable_detr_r50.py": "",
    "DINO/configs/dino_r50_4scale_36ep.py": "279",
    "SparseDETR/configs/sparse_dino_r50_rho30.py": "152",
    "FocusDETR/configs/focus_detr_r50_36ep.py": "154",
}
"""Config -> published GFLOPs of the whole model: of Sparse DETR's repository, the last three of Focus-DETR's paper."""
ENCODER_IMAGE_SIZES = (IMAGE_SIZE, (800, 1333))
"""The second is the largest size of a test image of COCO."""


def main() -> int:
    """Write the tables that the command line names, or all."""
    asked = sys.argv[1:]
    for readme in sorted(ROOT.glob("projects/*/README.md")):
        if not asked or readme.parent.name in asked:
            write_table(readme, "cost", cost_table(sorted(readme.parent.glob("configs/*.py"))))
    if not asked or "encoders" in asked:
        write_table(ROOT / "projects/FocusDETR/README.md", "encoders", encoder_table())
    return 0


def write_table(readme: Path, name: str, lines: Iterable[str]) -> None:
    """Print a table line by line, then put it between the README's markers of that name."""
    text = []
    for line in lines:
        print(line, flush=True)
        text.append(line)
    fill_readme(readme, name, "\n".join(text))


def cost_table(configs: Iterable[Path]) -> Iterable[str]:
    """Make the table of parameters and GFLOPs; models that differ only in trained parameters are counted once."""
    return markdown_rows(["config", "parameters", "at inference", "GFLOPs", "encoder"], cost_rows(configs))


def cost_rows(configs: Iterable[Path]) -> Iterable[list[str]]:
    counted: dict[str, dict[str, float]] = {}
    for cfg, names in different_models(config for config in configs if "finetune" not in config.stem):
        model = detector(cfg)
        if structure(model) not in counted:
            counted[structure(model)] = gigaflops(model, random_image(IMAGE_SIZE))
        flops = counted[structure(model)]
        cells = [", ".join(f"`{name}`" for name in names), *parameters(model)]
        yield [*cells, f"{flops['total']:.1f}", f"{flops['encoder']:.1f}"]


def encoder_table() -> Iterable[str]:
    """Make the table of the cost of the encoders, dense and sparse."""
    columns = ["encoder", "of it selection", "times decoder", "all"]
    head = [f"{column}, {height}x{width}" for height, width in ENCODER_IMAGE_SIZES for column in columns]
    return markdown_rows(["config", "tokens kept", *head, "all, published"], encoder_rows())


def encoder_rows() -> Iterable[list[str]]:
    for config, published in ENCODERS.items():
        model = detector(configured(ROOT / "projects" / config))
        cells = [f"`{Path(config).stem}`", f"{model.mean_keep_ratio:.0%}"]
        for size in ENCODER_IMAGE_SIZES:
            flops = gigaflops(model, random_image(size))
            ratio = flops["encoder"] / flops["decoder"]
            cells += [f"{number:.1f}" for number in (flops["encoder"], flops["selection"], ratio, flops["total"])]
        yield [*cells, published]


def configured(config: Path) -> DictConfig:
    """Return a lazy config with the classes of the public repositories."""
    return load_config(str(config), [CLASSES])


def detector(cfg: DictConfig) -> nn.Module:
    """Build the model of a config for inference."""
    return build_detector(cfg, device="cpu").eval()


def different_models(configs: Iterable[Path]) -> list[tuple[DictConfig, list[str]]]:
    """Return one config of each model, and the names of all configs of that model."""
    groups: dict[tuple[str, ...], tuple[DictConfig, list[str]]] = {}
    for config in configs:
        cfg = configured(config)
        model = detector(cfg)
        _, names = groups.setdefault((structure(model), *parameters(model)), (cfg, []))
        names.append(config.stem)
    return list(groups.values())


def structure(model: nn.Module) -> str:
    """Return a text of all that a model's FLOPs depend on: modules, sizes (a Swin's windows, queries), kept tokens."""
    sizes = [tuple(value.shape) for part in (model.backbone, model.queries) for value in part.parameters()]
    return f"{model.mean_keep_ratio} {getattr(model.queries, 'num_queries', '')} {sizes} {model}"


def parameters(model: nn.Module) -> list[str]:
    """Count the trained parameters, and those among them that inference uses."""
    trained, unused = (
        sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
        for parts in ([model], [model.encoder_heads, model.denoising])
    )
    return [f"{trained:,}", f"{trained - unused:,}"]


def random_image(size: tuple[int, int]) -> torch.Tensor:
    """Return a uint8 image (3, h, w)."""
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


if __name__ == "__main__":
    run_script(main)
