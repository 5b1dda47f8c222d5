"""Stop when a loss or gradient is not finite: find the first bad tensor, write a bundle, raise an error.

The bundle holds only tensors, numbers and strings, so that `torch.load(..., weights_only=True)` can read it;
`python -m sparse_detr.engine.replay` runs it again.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from sparse_detr.engine.random_state import set_random_state
from sparse_detr.files import CannotWrite, write_atomically
from sparse_detr.modeling.training.normalizer import alone

logger = logging.getLogger(__name__)

_ADVICE = (
    "no optimiser step was taken; usual causes: a learning rate that is too high, fp16 overflow (try bf16 or off), "
    "broken boxes (run `sparse-detr check-data`)"
)


class NonFiniteError(FloatingPointError):
    """An error: a loss or gradient became NaN or infinite; the message says where."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Return every tensor inside nested containers, dataclasses and Detectron2's structures."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Boxes):
        yield value.tensor
    elif isinstance(value, Instances):
        yield from tensors_in(list(value.get_fields().values()))
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in dataclasses.fields(value)])


def is_broken(value: Any) -> bool:
    """Return whether a tensor in `value` holds NaN or +inf; -inf is allowed, since it fills masked scores."""
    return any(t.is_floating_point() and bool((t.isnan() | t.isposinf()).any()) for t in tensors_in(value) if t.numel())


def first_broken_module(model: nn.Module, run: Callable[[], Any]) -> str:
    """Return the name of the first module whose output is broken while `run()` calls the model; "" if none is."""
    found: list[str] = []

    def hook_for(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and is_broken(output):
                found.append(f"output of {name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        run()
    except (ValueError, FloatingPointError) as error:
        logger.info(f"the forward pass stopped again with: {error}")
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _first_broken(named: Iterator[tuple[str, Tensor]], kind: str) -> str:
    names = [name for name, tensor in named if not torch.isfinite(tensor).all()]
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{kind} {names[0]}{others}" if names else ""


def find_first_bad_tensor(model: nn.Module, batch: list[dict], run: Callable[[], Any]) -> str:
    """Return where non-finite numbers enter: input, parameter, output of a module, or gradient; "" if nowhere."""
    for item in batch:
        if is_broken(item):
            return f"input of {name_image(item)}"
    parameter = _first_broken(model.named_parameters(), "parameter")
    module = first_broken_module(model, run)
    if parameter or module:
        return ", with ".join(filter(None, [module, parameter]))
    gradients = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    return _first_broken(gradients, "gradient of")


def name_image(item: dict[str, Any]) -> str:
    """Return the file name of a batch item, or its id, for a message."""
    return str(item.get("file_name", item.get("image_id", "an image without a name")))


@dataclass(frozen=True)
class Failure:
    """The facts of one rank about a non-finite number; `what` is empty on a rank without one."""

    what: str
    first_bad_tensor: str
    iteration: int
    batch: list[dict[str, Any]]
    model_state: dict[str, Tensor]
    random_state: dict[str, Any]
    precision: str

    @classmethod
    def diagnose(
        cls,
        *,
        model: nn.Module,
        compute_losses: Callable[[nn.Module, list[dict]], dict[str, Tensor]],
        batch: list[dict],
        what: str,
        iteration: int,
        random_state: dict[str, Any],
        precision: str,
    ) -> "Failure":
        """Run the forward pass again with the same random numbers and check every module; needs no other rank."""
        set_random_state(random_state)
        with torch.no_grad(), alone():
            first_bad = find_first_bad_tensor(model, batch, lambda: compute_losses(model, batch))
        return cls(what, first_bad, iteration, batch, model.state_dict(), random_state, precision)

    def describe(self) -> str:
        images = ", ".join(f"{name_image(item)} (id {item.get('image_id', 'unknown')})" for item in self.batch)
        return (
            f"rank {comm.get_rank()}: {self.what} is not finite; "
            f"first bad tensor: {self.first_bad_tensor or 'not found when run again'}; images: {images}"
        )


def pack_batch(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a batch as tensors, numbers and strings; `unpack_batch` is the inverse."""
    return [{key: _pack(value) for key, value in item.items()} for item in batch]


def _pack(value: Any) -> Any:
    if isinstance(value, Instances):
        fields = {name: _pack(field) for name, field in value.get_fields().items()}
        return {"__type__": "Instances", "image_size": tuple(value.image_size), "fields": fields}
    if isinstance(value, Boxes):
        return {"__type__": "Boxes", "tensor": value.tensor.cpu()}
    if isinstance(value, Tensor):
        return value.cpu()
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def unpack_batch(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the batch that `pack_batch` was given, on the CPU."""
    return [{key: _unpack(value) for key, value in item.items()} for item in batch]


def _unpack(value: Any) -> Any:
    kind = value.get("__type__") if isinstance(value, dict) else None
    if kind == "Instances":
        fields = {name: _unpack(field) for name, field in value["fields"].items()}
        return Instances(tuple(value["image_size"]), **fields)
    return Boxes(value["tensor"]) if kind == "Boxes" else value


def write_bundle(failure: Failure, path: str, *, config_text: str, message: str) -> None:
    """Write all that a replay needs.

    The running statistics of BatchNorm are those after the batch; a forward pass in training mode does not use them.
    """
    bundle = {
        "iteration": failure.iteration,
        "message": message,
        "precision": failure.precision,
        "batch": pack_batch(failure.batch),
        "model": {name: tensor.cpu() for name, tensor in failure.model_state.items()},
        "random_state": failure.random_state,
        "config": config_text,
    }
    write_atomically(path, lambda file: torch.save(bundle, file))


def stop_training(failure: Failure, *, directory: str, config_text: str, all_ranks: bool) -> NoReturn:
    """Write a bundle for each rank with a bad number and raise the same `NonFiniteError` on all ranks.

    Args:
        all_ranks: whether every rank calls this; False if this rank stops alone, in the middle of a forward pass.
    """
    own = failure.describe() if failure.what else ""
    if failure.what and directory:
        suffix = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
        path = os.path.join(directory, f"nonfinite_iter_{failure.iteration:07d}{suffix}.pth")
        try:
            write_bundle(failure, path, config_text=config_text, message=own)
            own += f"; run it again with: python -m sparse_detr.engine.replay {path} --config-file CONFIG"
        except CannotWrite as error:  # must not hide the non-finite number
            own += f"; {error}"
    reports = comm.all_gather(own) if all_ranks else [own]
    lines = "\n".join(report for report in reports if report)
    raise NonFiniteError(f"stopped at iteration {failure.iteration} before the optimiser step\n{lines}\n{_ADVICE}")
