"""What a model costs, for the other scripts: FLOPs by part, and times of several models taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

PARTS = {"encoder": ("encoder", "selector"), "selection": ("selector",), "decoder": ("decoder",)}
"""Parts of the bill and their modules. Choosing tokens is the encoder's, with the projection that it reads."""


@torch.no_grad()
def gigaflops(model: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """GFLOPs of an image (3, h, w) at inference by Detectron2's counter, a multiply-add being one.

    Returns:
        `total`, and those of PARTS.
    """
    # "caller": what the encoder borrows, such as a prediction head, counts as the encoder's.
    counted = FlopCountAnalysis(model.eval(), [{"image": image}]).ancestor_mode("caller")
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    flops = {name.removeprefix("model."): count / 1e9 for name, count in counted.by_module().items()}
    parts = {part: sum(flops.get(name, 0) for name in names) for part, names in PARTS.items()}
    return {"total": flops[""], **parts}


def seconds_in_turn(actions: Mapping[str, Callable[[Any], object]], inputs: Sequence[Any]) -> dict[str, float]:
    """Median seconds of every action, all of them on one input before the next one, so that other load hits all alike.

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
    """An action for `seconds_in_turn`: detect in one image."""

    @torch.no_grad()
    def detect(image: dict[str, Any]) -> object:
        return model.eval()([image])

    return detect


def training_step(model: nn.Module) -> Callable[[list[dict[str, Any]]], object]:
    """An action for `seconds_in_turn`: losses of a batch and their gradients."""

    def step(batch: list[dict[str, Any]]) -> None:
        model.zero_grad(set_to_none=True)
        sum(model.train()(batch).values()).backward()

    return step
