"""What a model costs, for the other scripts: FLOPs by part, and times of several models taken in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn

ENCODER_PARTS = ("encoder", "selector")
"""What refines tokens, and what chooses them: scores, and the projection that these are computed from."""


def gigaflops(model: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """GFLOPs of an image (3, h, w) at inference by Detectron2's counter, a multiply-add being one.

    Returns:
        `total`, and `encoder`: with the selection of its tokens.
    """
    # "caller": what the encoder borrows, such as a prediction head, counts as the encoder's.
    counted = FlopCountAnalysis(model.eval(), [{"image": image}]).ancestor_mode("caller")
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted.tracer_warnings("none")
    flops = counted.by_module()
    parts = [next((flops[name] for name in flops if name.split(".")[-1] == part), 0) for part in ENCODER_PARTS]
    return {"total": flops[""] / 1e9, "encoder": sum(parts) / 1e9}


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
