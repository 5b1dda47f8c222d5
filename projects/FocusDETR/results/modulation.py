"""Show what Focus-DETR's top-down modulation does to the scores of finer levels, and to the recall of foreground.

    python train_net.py --config-file configs/quick/focus_detr_mnv2.py --output-dir output/focus train.max_iter=300
    python projects/FocusDETR/results/modulation.py --weights output/focus/model_final.pth

Takes the tokens of a trained model as they are, and trains scorers on those of the training images, from the same
start without modulation and with either form. On the held-out images it asks how much a scorer's modulation changes
its scores, and what share of the foreground tokens it keeps at the budgets of the encoder's layers and at the mean.
Writes modulation.json and modulation.png beside this script.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from sparse_detr.analysis.tables import markdown_table, mean_and_deviation
from sparse_detr.config import load_config
from sparse_detr.config.building import build_part
from sparse_detr.config.model import build_detector
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.engine.weights import load_trained_weights
from sparse_detr.modeling.initialization import initialize_transformer
from sparse_detr.modeling.selection import ScoringNetwork, TopDownScorer
from sparse_detr.modeling.selection.budgets import share_of
from sparse_detr.structures import Pyramid, Tokens

FORMS = ("none", "released", "exact")
COLORS = {"none": "tab:gray", "released": "tab:orange", "exact": "tab:blue"}
BATCH_SIZE, LEARNING_RATE = 4, 1e-3


@dataclass(frozen=True, eq=False)
class Example:
    """The tokens of one image.

    Args:
        projected: (1, N, C), what a scorer reads.
        pyramid: their geometry.
        labels: (1, N) bool, True on foreground.
        image: (3, h, w) uint8.
    """

    projected: Tensor
    pyramid: Pyramid
    labels: Tensor
    image: Tensor


class Projected:
    """In place of `Proposals`: the tokens went through the projection already."""

    def project(self, tokens: Tensor) -> Tensor:
        return tokens


def main() -> None:
    """Measure, then write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="configs/quick/focus_detr_mnv2.py", help="lazy config of the model")
    parser.add_argument("--weights", required=True, help="checkpoint of its training")
    parser.add_argument("--steps", type=int, default=200, help="of a scorer's training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = load_config(args.config_file, ["train.device=cpu"])
    model = build_detector(config).eval()
    load_trained_weights(model, args.weights)
    training = list(examples(model, config, "train", rounds=3))
    held_out = list(examples(model, config, "test", rounds=1))
    last = model.keep_ratio * model.selector.budget.schedule[-1]
    shares = sorted({model.keep_ratio, model.mean_keep_ratio, last}, reverse=True)

    found: dict[str, Any] = {"alpha": model.selector.scorer.alpha.tolist(), "budgets": shares}
    found["change"] = change_of_scores(model.selector.scorer, held_out)
    found["scorers"] = {form: [] for form in FORMS}
    for form in FORMS:
        for seed in args.seeds:
            scorer = train_scorer(form, training, seed=seed, steps=args.steps)
            found["scorers"][form].append(evaluate_scorer(scorer, held_out, shares))
            print(form, seed, found["scorers"][form][-1], flush=True)
    args.output.mkdir(exist_ok=True)
    (args.output / "modulation.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(args.output / "modulation.png", model.selector.scorer, held_out[0], found)
    print(summary(found))


def examples(model: nn.Module, config: DictConfig, loader: str, *, rounds: int) -> Iterator[Example]:
    """Yield every image of the `train` or `test` loader's data set, `rounds` times."""
    augmentations = build_part(config, f"dataloader.{loader}.mapper.augmentations")
    mapper = DetrDatasetMapper(is_train=True, augmentations=augmentations)
    projected: list[Tensor] = []
    handle = model.projection.register_forward_hook(lambda *call: projected.append(call[-1]))
    names = config.dataloader[loader].dataset.names
    for record in get_detection_dataset_dicts(names, filter_empty=False) * rounds:
        sample = mapper(record)
        assert sample is not None
        projected.clear()
        with torch.no_grad():
            output = model.outputs([sample], attention_map=False)
        boxes = [target.boxes for target in model.targets([sample])]
        labels = model.supervision.labels(output.pyramid, boxes, output.image_sizes)
        yield Example(projected[0], output.pyramid, labels, sample["image"])  # the first: what the scorer saw
    handle.remove()


def score(scorer: TopDownScorer, example: Example) -> Tensor:
    """Return the scores, (1, N)."""
    tokens = Tokens(example.projected, torch.zeros_like(example.projected), example.pyramid)
    return scorer(tokens, Projected()).values  # type: ignore[arg-type]


@torch.no_grad()
def on_and_off(scorer: TopDownScorer, example: Example) -> tuple[Tensor, Tensor]:
    """Return the scores with the modulation, and without."""
    alpha = scorer.alpha.clone()
    modulated = score(scorer, example)
    scorer.alpha.zero_()
    plain = score(scorer, example)
    scorer.alpha.copy_(alpha)
    return modulated, plain


def change_of_scores(scorer: TopDownScorer, held_out: Sequence[Example]) -> list[float]:
    """Return by level the mean absolute change of a score, in standard deviations of the level's scores."""
    changes: list[list[float]] = []
    for example in held_out:
        modulated, plain = (example.pyramid.split(scores) for scores in on_and_off(scorer, example))
        changes.append([((a - b).abs().mean() / b.std()).item() for a, b in zip(modulated, plain, strict=True)])
    return [statistics.fmean(level) for level in zip(*changes, strict=True)]


def train_scorer(form: str, training: Sequence[Example], *, seed: int, steps: int) -> TopDownScorer:
    """Train a new scorer on the tokens as they are; it starts and sees images as the others of its seed."""
    torch.manual_seed(seed)
    example = training[0]
    scorer = TopDownScorer(
        network=ScoringNetwork(embed_dim=example.projected.shape[-1]),
        num_levels=len(example.pyramid.spatial_shapes),
        modulation="released" if form == "released" else "exact",
    )
    scorer.apply(initialize_transformer)
    if form == "none":
        nn.init.zeros_(scorer.alpha.requires_grad_(False))
    optimizer = torch.optim.AdamW([p for p in scorer.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, total_iters=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(training), (BATCH_SIZE,), generator=generator).tolist()
        losses = [focal_loss(scorer, training[i]) for i in chosen]
        loss = sum(losses) / max(sum(int(training[i].labels.sum()) for i in chosen), 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    return scorer


def focal_loss(scorer: TopDownScorer, example: Example) -> Tensor:
    """Return the loss, summed over tokens."""
    labels = example.labels.to(example.projected)
    return sigmoid_focal_loss(score(scorer, example), labels, alpha=0.25, gamma=2.0, reduction="sum")


@torch.no_grad()
def evaluate_scorer(scorer: TopDownScorer, held_out: Sequence[Example], shares: Sequence[float]) -> dict[str, Any]:
    """Measure change of scores, loss a foreground token, and recall at every budget, over all images."""
    total = sum(int(example.labels.sum()) for example in held_out)
    kept = [0] * len(shares)
    for example in held_out:
        order = score(scorer, example).argsort(dim=1, descending=True)
        for i, share in enumerate(shares):
            budget = share_of(example.pyramid.valid_counts[0], share)
            kept[i] += int(example.labels.gather(1, order[:, :budget]).sum())
    loss = sum(focal_loss(scorer, example).item() for example in held_out) / total
    return {
        "change": [float(f"{change:.2g}") for change in change_of_scores(scorer, held_out)],
        "loss": round(loss, 4),
        "recall": [round(100 * count / total, 2) for count in kept],
    }


def summary(found: dict[str, Any]) -> str:
    """Return the results as a table in Markdown."""
    rows = []
    for form, runs in found["scorers"].items():
        changes = [statistics.fmean(levels) for levels in zip(*(run["change"] for run in runs), strict=True)]
        cells = [", ".join(f"{change:.2g}" for change in changes[:-1])]
        cells += [mean_and_deviation([run["loss"] for run in runs], digits=4)]
        cells += [mean_and_deviation(list(recalls)) for recalls in zip(*(run["recall"] for run in runs), strict=True)]
        rows.append([form, *cells])
    budgets = [f"recall at {share:.0%}" for share in found["budgets"]]
    return markdown_table(["modulation", "change of scores", "loss", *budgets], rows)


def draw(path: Path, scorer: TopDownScorer, example: Example, found: dict[str, Any]) -> None:
    """Draw the finest level's scores of one image with and without, what changed, and the recalls."""
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.4), layout="constrained")
    axes[0].imshow(example.image.permute(1, 2, 0).numpy())
    axes[0].set_title("held-out image")
    modulated, plain = (finest(scores, example.pyramid) for scores in on_and_off(scorer, example))
    low, high = np.percentile(np.stack([modulated, plain]), (1, 99))
    for axis, values, title in ((axes[1], plain, "finest scores, off"), (axes[2], modulated, "finest scores, on")):
        figure.colorbar(axis.imshow(values, vmin=low, vmax=high), ax=axis)
        axis.set_title(title)
    change = modulated - plain
    reach = np.abs(change).max()
    figure.colorbar(axes[3].imshow(change, cmap="RdBu_r", vmin=-reach, vmax=reach), ax=axes[3])
    axes[3].set_title("change by the modulation")
    for axis in axes[:4]:
        axis.set_axis_off()
    draw_recalls(axes[4], found)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_recalls(axis: Any, found: dict[str, Any]) -> None:
    """Draw the difference to the mean without modulation, a dot a seed."""
    plain = np.mean([run["recall"] for run in found["scorers"]["none"]], axis=0)
    for offset, (form, runs) in enumerate(found["scorers"].items()):
        gain = np.array([run["recall"] for run in runs]) - plain
        places = np.arange(len(plain)) + 0.15 * (offset - 1)
        axis.plot(np.tile(places, (len(runs), 1)).T, gain.T, "o", color=COLORS[form], alpha=0.6)
        axis.plot(places, gain.mean(0), "_", color=COLORS[form], markersize=16, label=form)
    axis.axhline(0, color="lightgray", zorder=0)
    axis.set_xticks(range(len(plain)), [f"{share:.0%} kept" for share in found["budgets"]])
    axis.set_title("recall of foreground, points\nmore than without modulation")
    axis.legend(fontsize=8)


def finest(scores: Tensor, pyramid: Pyramid) -> np.ndarray:
    """Return the (h, w) map of the first level."""
    return pyramid.split(scores)[0][0].view(pyramid.spatial_shapes[0]).numpy()


if __name__ == "__main__":
    main()
