"""Scenarios for two processes; each process writes its results into a file of its rank."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from sparse_detr.config.run import Run
from sparse_detr.data.loader import build_test_loader
from sparse_detr.engine.distributed import wrap_for_ranks
from sparse_detr.engine.training import train
from sparse_detr.engine.validation import validation_losses
from sparse_detr.modeling.effort import Effort, ElasticEffort
from sparse_detr.recipes import mobilenet_v2, sparse_detr
from tests.engine.toys import ToyDetector, ToyWithLosses, toy_loader, toy_run, toy_test_loader

WORLD_SIZE = 2
TIMEOUT = timedelta(seconds=300)  # a hang takes for ever; a busy machine takes long
EMPTY = "images of the second rank have no boxes"
FULL = "all images have boxes"
ELASTIC = "an elastic step"


def run_scenarios(folder: Path) -> None:
    """Run every scenario in two gloo processes; raise an error if they hang."""
    context = mp.start_processes(_rank, args=(folder,), nprocs=WORLD_SIZE, join=False)
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while not context.join(1.0):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the processes hang; finished: {sorted(path.name for path in folder.glob('*.pt'))}")


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    url = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=WORLD_SIZE, timeout=TIMEOUT)
    comm.create_local_process_group(WORLD_SIZE)
    for name, scenario in SCENARIOS.items():
        (folder / name).mkdir(exist_ok=True)
        comm.synchronize()
        torch.save(_outcome(scenario, folder / name), folder / f"{name}_rank{rank}.pt")
    dist.destroy_process_group()


def _outcome(scenario: Callable[[Path], Any], folder: Path) -> Any:
    try:
        return scenario(folder)
    except (Exception, SystemExit) as error:
        return {"error": type(error).__name__, "message": str(error)}


def train_toy(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights after a training in joint batches of 4, which the processes of `dist` share."""
    model = ToyDetector(dropout=0.0)
    run = toy_run(folder, model=model)
    object.__setattr__(run, "build_train_loader", lambda: toy_loader(batch_size=4))
    train(run)
    return model.state_dict()


def resume_toy(folder: Path) -> dict[str, bool]:
    """Return whether a training with different dropout on each rank ends equally when resumed from its middle."""
    run = toy_run(folder, model=ToyDetector(), checkpointer={"period": 4})
    torch.manual_seed(comm.get_rank())
    train(run)
    whole = torch.load(folder / "model_final.pth", weights_only=True)
    comm.synchronize()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    comm.synchronize()
    train(toy_run(folder, checkpointer={"period": 4}), resume_last=True)
    again = torch.load(folder / "model_final.pth", weights_only=True)
    states = [state["torch"] for state in whole["random_states"]]
    return {
        "same weights": all(torch.equal(weight, again["model"][name]) for name, weight in whole["model"].items()),
        "one random state a rank": len(states) == WORLD_SIZE and not torch.equal(*states),
    }


def fail_on_second_rank(folder: Path) -> None:
    """Train with a NaN in the third batch of the second rank."""
    model = ToyDetector()
    calls = []

    def poison(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return output * float("nan") if len(calls) > 2 and comm.get_rank() == 1 else output

    model.backbone.register_forward_hook(poison)
    train(toy_run(folder, model=model))


def stop_second_rank(folder: Path) -> None:
    """Train and send SIGTERM to the second rank only."""
    model = ToyDetector()

    def kill(module: Any, inputs: Any) -> None:
        if comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    model.register_forward_pre_hook(kill)
    train(toy_run(folder, model=model))


def tiny_detector(**elastic: Any) -> torch.nn.Module:
    from detectron2.config import instantiate

    torch.manual_seed(0)
    options = {"embed_dim": 32, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 2, "feedforward_dim": 16}
    model = sparse_detr(backbone=mobilenet_v2(), num_classes=3, num_queries=10, dropout=0.0, **options, **elastic)
    return instantiate(model).double().train()


def images(*, empty: bool) -> list[dict[str, Any]]:
    """Return four images of one size; the last two have no boxes if `empty`."""
    generator = torch.Generator().manual_seed(5)
    batch = []
    for index in range(4):
        count = 0 if empty and index >= 2 else index + 1
        corner = torch.rand(count, 2, generator=generator) * 32
        boxes = Boxes(torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=generator) * 20], dim=1))
        instances = Instances((64, 64), gt_boxes=boxes, gt_classes=torch.arange(count) % 3)
        image = (torch.rand(3, 64, 64, generator=generator) * 255).to(torch.uint8)
        batch.append({"image": image, "instances": instances, "height": 64, "width": 64})
    return batch


def detector_gradients(*, empty: bool) -> dict[str, Any]:
    """Return the losses of this process and the gradients of the joint batch of four images, after the exchange."""
    return gradients_of(tiny_detector(), share_of_rank(images(empty=empty)))


def elastic_gradients(folder: Path) -> dict[str, Any]:
    """Return the same of an elastic training step: a share for every image, one decoder layer of two."""
    model = tiny_detector(training_keep_ratios=(0.2, 1.0), training_decoder_layers=(1, 2))
    budget = model.selector.training_budget
    # Between 0.4 and 1, tokens without attention would tie, and which of them are labels depends on the batch.
    shares = share_of_rank([0.2, 0.3, 0.4, 1.0])
    object.__setattr__(budget, "deal", lambda number: [budget.with_keep_ratio(share) for share in shares])
    one_layer = next(i for i in range(99) if first_draw(i).decoder_layers == 1)
    model.training_effort = replace(model.training_effort, iteration=lambda: one_layer)
    return gradients_of(model, share_of_rank(images(empty=False)), find_unused_parameters=True)


def first_draw(iteration: int) -> Effort:
    """Return what a step at an iteration runs."""
    return ElasticEffort(layer_range=(1, 2), iteration=lambda: iteration).draw(2)


def share_of_rank(joint: list[Any]) -> list[Any]:
    """Return the part of a joint batch of four that this process has."""
    share = 4 // comm.get_world_size()
    return joint[comm.get_rank() * share :][:share]


def gradients_of(detector: torch.nn.Module, batch: list[dict[str, Any]], **ddp_options: Any) -> dict[str, Any]:
    """Return the losses of this process and the gradients after the exchange, zeros where there is none."""
    model = wrap_for_ranks(detector, torch.device("cpu"), broadcast_buffers=False, **ddp_options)
    losses = model(batch)
    sum(losses.values()).backward()
    trained = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "gradients": [torch.zeros_like(p) if p.grad is None else p.grad for p in trained.values()],
        "unused": [name for name, p in trained.items() if p.grad is None],
    }


def validation_run(folder: Path) -> Run:
    """Return a run that evaluates losses on five images, which two processes cannot share equally."""
    run = toy_run(folder, model=ToyWithLosses(), scores=[1.0] * 4, validation_loss=True)
    [evaluation] = run.evaluation_sets
    return replace(run, evaluation_sets=[replace(evaluation, build_loader=lambda: toy_test_loader((1, 0, 3, 2, 1)))])


def validation_of_toy(folder: Path) -> dict[str, float]:
    """Return the validation losses of an untrained toy: on the main process, {} on the other."""
    run = validation_run(folder)
    return validation_losses(run, run.build_model())


def validation_of_detector(folder: Path) -> dict[str, float]:
    """Return the validation losses of a detector whose losses are normalised over processes in training."""
    run = toy_run(folder, scores=[1.0], validation_loss=True)
    samples = images(empty=True)[:3]
    loader = build_test_loader(dataset=[{"image_id": i} for i in range(3)], mapper=PickImage(samples))
    [evaluation] = run.evaluation_sets
    run = replace(run, evaluation_sets=[replace(evaluation, build_loader=lambda: loader)])
    return validation_losses(run, tiny_detector())


@dataclass
class PickImage:
    """A mapper that returns an image of a list."""

    samples: list[dict[str, Any]]
    is_train: bool = False

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        sample = self.samples[record["image_id"]]
        return sample if self.is_train else {key: value for key, value in sample.items() if key != "instances"}


def train_with_validation(folder: Path) -> dict[str, float]:
    """Return the scores at the end of a training that ends by its validation loss, on every process."""
    settings = {"metric": "validation/total_loss", "patience": 2, "min_improvement": 1e9}
    run = validation_run(folder)
    run = replace(run, settings=replace(run.settings, max_iter=20, early_stopping=settings))
    train(run)
    return {"iteration": torch.load(folder / "model_final.pth", weights_only=True)["iteration"]}


def choose_joint_batch(folder: Path) -> dict[str, Any]:
    """Return the batch that is chosen when the second process has less memory than the first."""
    from sparse_detr.engine import auto_batch
    from tests.engine.test_auto_batch import config, detector_run

    cfg = config()
    with mock.patch.object(auto_batch, "_fits_on_cpu", return_value=5 - comm.get_rank()):
        auto_batch.choose_batch(detector_run(folder, cfg))
    return {"batch": cfg.dataloader.train.total_batch_size, "rate": cfg.optimizer.lr}


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "toy": train_toy,
    "resume": resume_toy,
    "nonfinite": fail_on_second_rank,
    "signal": stop_second_rank,
    FULL: lambda folder: detector_gradients(empty=False),
    EMPTY: lambda folder: detector_gradients(empty=True),
    ELASTIC: elastic_gradients,
    "validation of a toy": validation_of_toy,
    "validation of a detector": validation_of_detector,
    "training with validation": train_with_validation,
    "batch": choose_joint_batch,
}
