"""Choose the largest batch that fits into memory, and the learning rate that goes with it (`train.batch=auto`).

The learning rate follows the batch by the rule of its optimizer. Adam divides the mean gradient by its own size, so
that the noise of a step falls with the root of the batch: the learning rate grows with the root (Malladi et al. 2022,
On the SDEs and Scaling Rules for Adaptive Gradient Algorithms). The step of SGD is the mean gradient itself: the
learning rate grows with the batch (Goyal et al. 2017, Accurate, Large Minibatch SGD).
"""

import gc
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from sparse_detr.checkpoint import load_file
from sparse_detr.config.kinds import YACS_KEYS, Config, kind_of
from sparse_detr.config.run import Run
from sparse_detr.data.loader import TrainLoader
from sparse_detr.engine.cpu import give_back_freed_memory
from sparse_detr.engine.distributed import largest_of_ranks
from sparse_detr.engine.precision import Precision
from sparse_detr.engine.prepare import prepare_model
from sparse_detr.engine.random_state import keep_random_state
from sparse_detr.errors import UserError
from sparse_detr.modeling.training.normalizer import alone

logger = logging.getLogger(__name__)

AUTO = "auto"
LARGEST = 64  # images of a process: more of them seldom train better
# Share of the free memory that is used; the rest is for fragments, on the CPU also for data-loading processes.
USED_SHARE = {"cuda": 0.9, "cpu": 0.8}
_MANY_TIMES = 4
_SAMPLES = 32  # images that the largest size is taken from
_BATCH, _RATE, _RULE = "dataloader.train.total_batch_size", "optimizer.lr", "optimizer.params.batch_size_scaling"

Batch = list[dict[str, Any]]


def choose_batch(run: Run, checkpoint: str = "") -> None:
    """Set batch and learning rate of the run's config where it asks for `train.batch=auto`; else change nothing.

    Every rank must call it. Random numbers stay as they are, so that the training is the one of a config with this
    batch and this learning rate. Both are in the config that is saved, so that a resume does not choose again.

    Args:
        run: its config is changed in place.
        checkpoint: that a resume goes on from, whose batch is kept; "" for a new training.

    Raises:
        UserError: not even one image fits, or the config or the system does not allow the choice.
    """
    kind = kind_of(run.config)
    if kind.get("train.batch") != AUTO:
        return
    if kind.get(_BATCH) is None or kind.get(_RATE) is None:
        raise UserError(f"train.batch=auto needs {_BATCH} and {_RATE} to start from; give both")
    old, rate = int(kind.get(_BATCH)), float(kind.get(_RATE))
    if checkpoint:
        batch, why = _batch_of(checkpoint, run.config), f"as in {checkpoint}"
    else:
        batch, why = _largest_batch(run)
    kind.set("train.batch", None)
    kind.set(_BATCH, batch)
    rule = rate_rule(run.config)
    new_rate = scaled_rate(rate, old, batch, rule)
    kind.set(_RATE, new_rate)
    if batch > _MANY_TIMES * old and not checkpoint:
        logger.warning(
            f"{batch} images are more than {_MANY_TIMES} times the config's {old}: warm up for longer and train for "
            "fewer iterations, or give a smaller batch"
        )
    logger.info(f"batch of {batch} images, {why}; {_about_rate(rate, new_rate, old, batch, rule)}")


def rate_rule(cfg: Config) -> str:
    """Return how the learning rate follows the batch: "sqrt", "linear", or the config's own rule as "config: sqrt"."""
    kind = kind_of(cfg)
    if (own := kind.get(_RULE)) not in (None, "none"):
        return f"config: {own}"
    optimizer = str(kind.choose(lazy=lambda: kind.get("optimizer._target_"), yacs=lambda: cfg.SOLVER.OPTIMIZER)())
    return "linear" if "SGD" in optimizer else "sqrt"


def scaled_rate(rate: float, old: int, new: int, rule: str) -> float:
    """Return the learning rate for `new` images from that for `old` ones; a rule of the config does it by itself."""
    return rate * {"sqrt": math.sqrt(new / old), "linear": new / old}.get(rule, 1.0)


def _about_rate(rate: float, new_rate: float, old: int, new: int, rule: str) -> str:
    if rule.startswith("config"):
        return f"the learning rate {rate:.3g} follows the config's own rule ({rule.removeprefix('config: ')})"
    return f"learning rate {rate:.3g} for {old} images -> {new_rate:.3g} for {new} ({rule} rule)"


def _batch_of(checkpoint: str, cfg: Config) -> int:
    """Return the batch that a checkpoint was trained with."""
    saved = load_file(checkpoint).get("config") or {}
    key = kind_of(cfg).choose(lazy=_BATCH, yacs=YACS_KEYS[_BATCH])
    if key not in saved:
        raise UserError(
            f"{checkpoint} does not say its batch, since an older version wrote it; give the number in place of "
            f"{kind_of(cfg).assignment('train.batch', AUTO)}"
        )
    return int(saved[key])


def _largest_batch(run: Run) -> tuple[int, str]:
    """Return the largest joint batch, and why it is so large as a part of a message."""
    ranks, device = comm.get_world_size(), torch.device(run.settings.device)
    if device.type not in USED_SHARE:
        raise UserError(f"train.batch=auto knows the memory of CPU and CUDA, not of {device.type}; give the batch")
    with keep_random_state(), alone():
        loader = run.build_train_loader()
        if not isinstance(loader, TrainLoader):
            raise UserError(
                "train.batch=auto needs dataloader.train by sparse_detr.data.loader.build_train_loader; give the batch"
            )
        image = largest_image(loader)
        probe = Probe(run, image)
        cap = max(1, min(LARGEST, len(loader.samples) // ranks))
        mine = _fits_on_gpu(probe, device, cap) if device.type == "cuda" else _fits_on_cpu(probe, cap)
        del probe
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    least = -largest_of_ranks(-mine, device)
    if least < 1:
        raise UserError(
            "not even a batch of one image fits into memory; lower the image sizes of the augmentation or the keep "
            "ratio, or train with train.amp.enabled=true or train.checkpoint_activations"
        )
    size = "x".join(map(str, reversed(image["image"].shape[-2:])))
    where = f"{least} in each of {ranks} processes" if ranks > 1 else f"of {size} pixels"
    share = USED_SHARE[device.type]
    reason = "the most that is tried" if least == cap else f"the most that fits into {share:.0%} of the free memory"
    return least * ranks, f"{where}, {reason}"


def largest_image(loader: TrainLoader) -> dict[str, Any]:
    """Return an input as large as any of the training: the largest height and width of samples, and the most boxes.

    A batch of tall and wide images is padded to such a size.
    """
    from sparse_detr.data.stream import StreamItem

    number = len(loader.samples)
    places = sorted({index * number // _SAMPLES for index in range(_SAMPLES)})
    samples = [loader.samples[StreamItem(position, index)] for position, index in enumerate(places)]
    channels = samples[0]["image"].shape[0]
    height, width = (max(sample["image"].shape[axis] for sample in samples) for axis in (-2, -1))
    most = max(len(record.get("annotations") or ()) for record in loader.samples.records)
    instances = Instances((height, width))
    corner = torch.arange(most) % max(1, min(height, width) // 2)
    boxes = torch.stack([corner, corner, corner + min(height, width) // 4, corner + min(height, width) // 4], dim=1)
    instances.gt_boxes = Boxes(boxes.float())
    instances.gt_classes = torch.zeros(most, dtype=torch.long)
    image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


class Probe:
    """Takes steps of a training with batches of one image, on a model of its own.

    Args:
        run: describes model and optimizer.
        image: of which a batch holds copies.
    """

    def __init__(self, run: Run, image: dict[str, Any]) -> None:
        settings = run.settings
        self._image = image
        self.model: nn.Module = run.build_model()
        prepare_model(self.model, settings)
        self._optimizer = run.build_optimizer(self.model)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0  # the weights stay as they are
        self._precision = Precision(name=settings.precision, device=torch.device(settings.device))
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        self.bytes_beside = weights * (int(settings.ema_decay is not None) + int(comm.get_world_size() > 1))

    def step(self, number: int) -> None:
        """Take one step with `number` images."""
        self._optimizer.zero_grad(set_to_none=True)
        try:
            with self._precision.autocast(), EventStorage(0):  # models of Detectron2 log into one
                losses = self.model([dict(self._image) for _ in range(number)])
            sum(loss.float() for loss in losses.values()).backward()
            self._optimizer.step()
        finally:
            self._optimizer.zero_grad(set_to_none=True)


def largest_that_fits(fits: Callable[[int], bool], cap: int) -> int:
    """Return the largest number up to `cap` that fits, by doubling and then halving the gap; 0 if not even 1 does."""
    low, high = 0, 1
    while high <= cap and fits(high):
        low, high = high, 2 * high
    high = min(high, cap + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _fits_on_gpu(probe: Probe, device: torch.device, cap: int) -> int:
    """Return the largest number of images whose step stays below a share of the GPU's free memory, by trying."""
    free, _ = torch.cuda.mem_get_info(device)
    limit = USED_SHARE["cuda"] * (free + torch.cuda.memory_reserved(device)) - probe.bytes_beside
    return largest_that_fits(lambda number: _gpu_has_room(probe, device, number, limit), cap)


def _gpu_has_room(probe: Probe, device: torch.device, number: int, limit: float) -> bool:
    torch.cuda.reset_peak_memory_stats(device)
    fits = True
    try:
        probe.step(number)
    except torch.OutOfMemoryError:
        fits = False
    gc.collect()  # after the except block: the error holds the tensors of the step
    torch.cuda.empty_cache()
    fits = fits and torch.cuda.max_memory_allocated(device) <= limit
    logger.info(f"a batch of {number} images {'fits' if fits else 'does not fit'}")
    return fits


def _fits_on_cpu(probe: Probe, cap: int) -> int:
    """Return the number of images whose step fits, from the memory of steps with one and two images."""
    probe.step(1)  # the optimizer's state and what is allocated once
    one, two = (peak_of_step(probe, number) for number in (1, 2))
    budget = USED_SHARE["cpu"] * free_memory() / comm.get_local_size() + resident_memory() - probe.bytes_beside
    return batch_from_memory(one, two, budget, cap)


def batch_from_memory(one: float, two: float, budget: float, cap: int) -> int:
    """Return how many images fit if memory grows by the same for each of them.

    Args:
        one, two: bytes of the process at most, in a step with one image and with two.
        budget: bytes that the process may take.
        cap: the largest answer.
    """
    if one > budget:
        return 0
    each = max(two - one, 1.0)
    return int(min(cap, 1 + (budget - one) // each))


def peak_of_step(probe: Probe, number: int) -> float:
    """Return the bytes of memory that the process holds at most during a step."""
    try:
        give_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to what is held now
        probe.step(number)
        return 1024 * _number_in("/proc/self/status", "VmHWM:")
    except OSError as error:
        raise UserError(
            "train.batch=auto on the CPU measures memory as Linux tells it, which this system does not "
            f"({error.strerror}); give the batch in place of it"
        ) from error


def resident_memory() -> float:
    """Return the bytes of memory that the process holds now."""
    return 1024 * _number_in("/proc/self/status", "VmRSS:")


def free_memory() -> float:
    """Return the bytes that programs can still take, on this machine and in the limits of its container."""
    free = [1024 * _number_in("/proc/meminfo", "MemAvailable:")]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            allowed, held = (Path(path).read_text(encoding="ascii").strip() for path in (limit, used))
        except OSError:
            continue
        if allowed != "max":
            free.append(float(allowed) - float(held))
    return max(min(free), 0.0)


def _number_in(path: str, name: str) -> float:
    for line in Path(path).read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(name):
            return float(line.split()[1])
    raise UserError(f"{path} has no {name}; give the batch in place of train.batch=auto")
