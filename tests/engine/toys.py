"""A model, data and runs so small that a training takes milliseconds."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparse_detr.config.run import EvaluationSet, Run, TrainSettings
from sparse_detr.data.loader import TrainLoader, build_test_loader, build_train_loader
from sparse_detr.engine.trainer import Trainer


class ToyDetector(nn.Module):
    """A model that returns two losses of a batch; dropout makes them depend on the random state."""

    def __init__(self, *, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(4, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 1)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = torch.stack([item["image"] for item in batch]).to(self.backbone.weight.device)
        predicted = self.head(self.dropout(self.backbone(images).relu()))
        targets = torch.stack([item["target"] for item in batch]).to(images)
        return {"loss_a": (predicted - targets).abs().mean(), "loss_b": predicted.square().mean()}


def toy_mapper(record: dict[str, Any]) -> dict[str, Any]:
    """A mapper that augments with a random number, as a real one does."""
    index = torch.tensor([float(record["image_id"])])
    image = torch.cat([index.sin(), index.cos(), torch.rand(2)])
    return {**record, "image": image, "target": (index / 3).sin()}


def toy_loader(*, batch_size: int = 2, images: int = 7, num_workers: int = 0) -> TrainLoader:
    records = [{"image_id": i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in range(images)]
    return build_train_loader(
        dataset=records, mapper=toy_mapper, total_batch_size=batch_size, num_workers=num_workers, seed=3
    )


def toy_trainer(model: nn.Module, *, loader: Any = None, lr: float = 0.1, **options: Any) -> Trainer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return Trainer(model=model, data_loader=loader or toy_loader(), optimizer=optimizer, **options)


class ToyMapper:
    """`toy_mapper` for evaluation: nothing is random, and true boxes come with `is_train` only."""

    is_train = False

    def __call__(self, record: dict[str, Any]) -> dict[str, Any] | None:
        if record["image_id"] == record.get("damaged"):
            return None
        index = torch.tensor([float(record["image_id"])])
        image = torch.cat([index.sin(), index.cos(), index, -index])
        boxes = {"instances": list(range(record["boxes"]))} if self.is_train else {}
        return {**record, "image": image, "target": index, **boxes}


def toy_test_loader(boxes: Sequence[int] = (1, 0, 3), *, batch_size: int = 1, **record: Any) -> DataLoader:
    """Return an evaluation loader of images with so many boxes."""
    records = [
        {"image_id": i, "file_name": f"{i}.png", "height": 1, "width": 1, "boxes": number, **record}
        for i, number in enumerate(boxes)
    ]
    return build_test_loader(dataset=records, mapper=ToyMapper(), batch_size=batch_size)


class ToyWithLosses(ToyDetector):
    """A toy that has its losses in eval mode too, and in eval mode no output of interest."""

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        return self.losses(batch) if self.training else [{} for _ in batch]

    def losses(self, batch: list[dict[str, Any]], *, denoising: bool = True) -> dict[str, Tensor]:
        losses = ToyDetector.forward(self, batch)
        return losses | ({"loss_a_dn": losses["loss_a"]} if denoising else {})


class ScriptedEvaluator:
    """An evaluator that returns the given scores, one a call, then zeros; it draws random numbers as a real one may."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = itertools.chain(scores, itertools.repeat(0.0))

    def reset(self) -> None:
        torch.rand(3)

    def process(self, inputs: Any, outputs: Any) -> None:
        pass

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP": next(self.scores)}}


def toy_run(output_dir: Path, *, scores: list[float] = (), model: nn.Module | None = None, **settings: Any) -> Run:
    """Return a run of 8 iterations with a checkpoint and an evaluation every 2."""
    defaults: dict[str, Any] = {"max_iter": 8, "checkpointer": {"period": 2}, "eval_period": 2, "clip_grad_norm": 0.1}
    settings = {"device": "cpu", **defaults, **settings}
    evaluator = ScriptedEvaluator(list(scores))
    batch = [toy_mapper({"image_id": 1})]
    evaluation = EvaluationSet(names=["toy"], build_loader=lambda: [batch], build_evaluator=lambda: evaluator)
    return Run(
        config=OmegaConf.create({}),
        settings=TrainSettings(output_dir=str(output_dir), **settings),
        train_names=[],
        evaluation_sets=[evaluation] if scores else [],
        build_model=lambda: (model or ToyDetector()).to(settings["device"]),
        build_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.1),
        build_schedule=lambda optimizer: LinearParamScheduler(1.0, 0.1),
        build_train_loader=toy_loader,
    )
