"""The cost of a detector: FLOPs by part, and paired times of several models."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import Tensor, nn

from sparse_detr.analysis.flops import register_flop_handles

PARTS = {"encoder": ("encoder", "selector", "decoder.encoder"), "selection": ("selector",), "decoder": ("decoder",)}
"""Part -> the modules that count as it. Choosing tokens, with the projection that it reads, counts as the encoder.

Encoder layers between decoder layers count as both.
"""


@torch.no_grad()
def gigaflops(model: nn.Module, image: Tensor, budget: Any = None) -> dict[str, float]:
    """Count the GFLOPs of one image at inference with Detectron2's counter; one multiply-add is one FLOP.

    Args:
        model: a detector; it is left in eval mode.
        image: (3, h, w) uint8.
        budget: as in a call of the model: a share of the tokens, or a `Budget`; None for the model's own.

    Returns:
        `total`, and those of `PARTS`.
    """
    flops = _flops_by_module(model, [{"image": image}] if budget is None else ([{"image": image}], budget))
    parts = {part: sum(flops.get(name, 0) for name in names) / 1e9 for part, names in PARTS.items()}
    return {"total": flops[""] / 1e9, **parts}


@torch.no_grad()
def part_gigaflops(
    model: nn.Module, image: dict[str, Any], parts: Mapping[str, Sequence[str]], budget: Any = None
) -> dict[str, float]:
    """Count the GFLOPs of one image by part, each FLOP once: they sum to those of the model.

    Args:
        model: a detector with Detectron2's contract; it is left in eval mode.
        image: an input of the model, on the CPU or the model's device.
        parts: part -> the paths of its modules. A module inside a module of another part counts for its own part.
        budget: as in `gigaflops`.

    Returns:
        Those of every part, and `rest`.
    """
    flops = _flops_by_module(model, [image] if budget is None else ([image], budget))
    own: dict[str, float] = {}
    for path in sorted((path for paths in parts.values() for path in paths), key=len, reverse=True):
        inside = sum(count for other, count in own.items() if other.startswith(f"{path}."))
        own[path] = flops.get(path, 0) - inside
    found = {part: sum(own[path] for path in paths) for part, paths in parts.items()}
    found["rest"] = flops[""] - sum(found.values())
    return {part: count / 1e9 for part, count in found.items()}


def _flops_by_module(model: nn.Module, inputs: Any) -> dict[str, float]:
    """Return the FLOPs of every module by its path; "" is the model."""
    register_flop_handles()
    # "caller": FLOPs of a module that the encoder calls, such as a prediction head, count for the encoder.
    counted = FlopCountAnalysis(model.eval(), inputs).ancestor_mode("caller")
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return {name.removeprefix("model."): count for name, count in counted.by_module().items()}


def seconds_in_turn(actions: Mapping[str, Callable[[Any], object]], inputs: Sequence[Any]) -> dict[str, float]:
    """Return the median seconds of every action; actions run in turn on every input, so other load affects all alike.

    Args:
        actions: by name; their order rotates.
        inputs: the first one warms up and does not count.
    """
    names, seconds = list(actions), {name: [] for name in actions}
    for turn, item in enumerate(inputs):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            actions[name](item)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def inference(model: nn.Module) -> Callable[[dict[str, Any]], object]:
    """Return an action for `seconds_in_turn` that detects in one image."""

    @torch.no_grad()
    def detect(image: dict[str, Any]) -> object:
        return model.eval()([image])

    return detect


def training_step(model: nn.Module) -> Callable[[list[dict[str, Any]]], object]:
    """Return an action for `seconds_in_turn` that computes a batch's losses and their gradients."""

    def step(batch: list[dict[str, Any]]) -> None:
        model.zero_grad(set_to_none=True)
        sum(model.train()(batch).values()).backward()

    return step
