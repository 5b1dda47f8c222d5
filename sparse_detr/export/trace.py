"""A detector as a program of PyTorch, with open or fixed sizes of the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sparse_detr.errors import UserError
from sparse_detr.export.detections import DetectionProgram
from sparse_detr.export.formats import without_warnings
from sparse_detr.ops.backends import use_backend

MAX_BATCH, MAX_SIDE = 1024, 16384
FIXED_SIZE_REMEDY = "give --fixed-size H W for a file whose images are all padded to one size"


def trace_program(
    program: DetectionProgram,
    *,
    min_size: int,
    fixed_size: tuple[int, int] | None = None,
    backend: str | None = "gather",
) -> ExportedProgram:
    """Export a detector with an open batch, and open height and width unless they are fixed.

    Args:
        program: in eval mode.
        min_size: shortest side of a batch in pixels, for open sizes.
        fixed_size: (h, w) of all batches; None for open sizes.
        backend: of deformable attention, see `sparse_detr.ops.backends`; None for the op of this package, which a
            process without the package cannot run.

    Raises:
        UserError: the model holds for one size only, and no size is fixed.
    """
    example = example_inputs(program, fixed_size or (min_size + 61, min_size + 122))
    shapes: dict[int, Dim] = {0: Dim("batch", max=MAX_BATCH)}
    if fixed_size is None:
        shapes |= {
            2: Dim("height", min=min_size, max=MAX_SIDE),
            3: Dim("width", min=min_size, max=MAX_SIDE),
        }
    with without_warnings(), torch.no_grad(), _backend(backend), _without_shape_cache():
        try:
            return torch.export.export(program, example, dynamic_shapes=(shapes, {0: shapes[0]}), strict=False)
        except Exception as error:
            if fixed_size is not None:
                raise
            name = type(program.detector.backbone).__name__
            raise UserError(
                f"this model (backbone {name}) cannot be exported with open height and width "
                f"({_first_line(error)}); {FIXED_SIZE_REMEDY}"
            ) from error


def trace_script(program: DetectionProgram, *, fixed_size: tuple[int, int]) -> torch.jit.ScriptModule:
    """Trace a detector with TorchScript, whose height and width are constants."""
    with without_warnings(), torch.no_grad(), use_backend("gather"):
        return torch.jit.trace(program, example_inputs(program, fixed_size), check_trace=False)


def example_inputs(program: DetectionProgram, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return two images of (h, w), the second one with padding, and their sizes."""
    channels = len(program.detector.pixel_mean)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, channels, *size), generator=generator).to(program.detector.pixel_mean)
    height, width = size
    return images, torch.tensor([(height, width), (height - height // 8, width - width // 4)], device=images.device)


@contextmanager
def _backend(name: str | None) -> Iterator[None]:
    with use_backend(name) if name is not None else nullcontext():
        yield


def _without_shape_cache() -> AbstractContextManager[Any]:
    """Let the tracer compute every shape anew: to look up and compare formulas of open sizes takes longer."""
    from torch._dynamo import config

    name = "fake_tensor_cache_enabled"
    return config.patch({name: False}) if hasattr(config, name) else nullcontext()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
