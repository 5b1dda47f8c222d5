"""Export a detector: trace it, write it in memory, compare it with the model, and only then put the file in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sparse_detr.errors import UserError
from sparse_detr.export import plugin as plugins
from sparse_detr.export.detections import DetectionProgram
from sparse_detr.export.formats import (
    DEFAULT_OPSET,
    OPSETS,
    TO_WRITE_ONNX,
    format_of,
    onnx_bytes,
    pt2_bytes,
    require_packages,
    torchscript_bytes,
)
from sparse_detr.export.metadata import Metadata, smallest_side
from sparse_detr.export.parity import Parity, check_parity, of_several_sizes
from sparse_detr.export.trace import FIXED_SIZE_REMEDY, trace_program, trace_script
from sparse_detr.files import write_atomically
from sparse_detr.inference import optimize as inference_form_of


def export_model(
    model: nn.Module,
    output: str | os.PathLike[str],
    *,
    metadata: Metadata,
    inputs: Sequence[dict[str, Any]],
    file_format: str | None = None,
    budget: float | str | None = None,
    opset: int | None = None,
    keep_op: bool = False,
    plugin: str | None = None,
    optimize: bool = False,
) -> Parity:
    """Write a detector as a file that runs without this package.

    Args:
        model: a `GeneralizedDETR` on the CPU, in float32; it is put into eval mode.
        output: the file to write.
        metadata: what the file says of itself; `fixed_size` there makes height and width constants.
        inputs: images as the model takes them, on which the file must detect what the model does, alone and in a batch.
            If all have one size, parts of them give several.
        file_format: "onnx", "pt2" or "torchscript"; None for that of the suffix.
        budget: how many tokens the encoder refines, as in a call of the model; None for the model's own.
        opset: version of ONNX's operators; None for 18.
        keep_op: keep this package's op in a .pt2 file, which is faster and needs the package where the file runs.
        plugin: "tensorrt" writes its plugin for deformable attention into an ONNX file.
        optimize: write the model in its inference form in float32, which does less work for the same detections; the
            file is compared with the model as it is.

    Returns:
        How well file and model agree. An ONNX file with a plugin is not run: its program is.

    Raises:
        UserError: the model cannot be exported so, or the file does not detect what the model detects; nothing is
            written.
    """
    file_format = format_of(output, file_format)
    check_choices(file_format, metadata, opset=opset, keep_op=keep_op, plugin=plugin)
    if not inputs:
        raise UserError("there is no image to compare file and model on; give one or more")
    _check_model(model)
    model.eval()
    metadata = _completed(metadata, model, budget=budget, needs_package=keep_op, plugin=plugin)
    program = DetectionProgram(_inference_form(model) if optimize else model, budget=budget)  # type: ignore[arg-type]
    content, checked = _written(program, file_format, metadata, opset)
    exported, chosen = _detector(checked, metadata), {} if budget is None else {"budget": budget}
    parity = check_parity(exported, model, of_several_sizes(inputs), fixed_size=metadata.fixed_size, **chosen)
    write_atomically(output, lambda file: file.write(content))
    return parity


def check_choices(
    file_format: str, metadata: Metadata, *, opset: int | None, keep_op: bool, plugin: str | None
) -> None:
    """Refuse options that do not fit the format, and formats whose packages are missing.

    Raises:
        UserError: names the option, and what it is for.
    """
    if file_format == "onnx":
        require_packages(TO_WRITE_ONNX, "exporting to ONNX")
    if opset is not None and file_format != "onnx":
        raise UserError(f"an opset is for ONNX files, not for {file_format}; leave it out")
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset {opset} cannot be written; give {OPSETS[0]} to {OPSETS[-1]}")
    if keep_op and file_format != "pt2":
        raise UserError(f"only .pt2 files can keep the op of this package, not {file_format}; leave --keep-op out")
    if plugin is not None and file_format != "onnx":
        raise UserError(f"a plugin is for ONNX files, not for {file_format}; leave it out")
    if plugin is not None and plugin not in plugins.PLUGINS:
        raise UserError(f"plugin {plugin!r} is unknown; give {', '.join(plugins.PLUGINS)}")
    if file_format == "torchscript" and metadata.fixed_size is None:
        raise UserError(f"a TorchScript trace holds for one height and width; {FIXED_SIZE_REMEDY}")


def _check_model(model: nn.Module) -> None:
    from sparse_detr.modeling.detector import GeneralizedDETR

    if not isinstance(model, GeneralizedDETR):
        raise UserError(f"a {type(model).__name__} cannot be exported; models of this package's recipes can")
    if model.device.type != "cpu":
        raise UserError(f"the model is on {model.device}; move it to the CPU for the export")
    max_iou = getattr(model.postprocess, "suppress_duplicates", None)
    if max_iou is not None:
        raise UserError(
            f"suppress_duplicates is {max_iou:g}, but a file gives as many detections of every image, so it cannot "
            "drop any; export with model.postprocess.suppress_duplicates=null (yaml: TEST.SUPPRESS_DUPLICATES None), "
            "and drop them where the file runs, such as with torchvision.ops.batched_nms"
        )


def _inference_form(model: nn.Module) -> nn.Module:
    """Return the inference form without the parts in the place of losses, whose properties torch.jit would read."""
    form = inference_form_of(model)  # type: ignore[type-var]
    form.criterion = form.supervision = nn.Identity()
    return form


def _completed(metadata: Metadata, model: nn.Module, *, budget: float | str | None = None, **facts: Any) -> Metadata:
    """Return the metadata with what only the model knows."""
    if metadata.fixed_size is not None:
        return replace(metadata, min_size=min(metadata.fixed_size), **facts)
    return replace(metadata, min_size=smallest_side(model, budget), **facts)


def _written(program: DetectionProgram, file_format: str, metadata: Metadata, opset: int | None) -> tuple[bytes, Any]:
    """Return the content of the file, and what is compared with the model: the opened file, or a plugin's program."""
    from sparse_detr.export.runtime import ExportedFile

    fixed = None if metadata.fixed_size is None else tuple(metadata.fixed_size)
    if file_format == "torchscript":
        content = torchscript_bytes(trace_script(program, fixed_size=fixed), metadata)  # type: ignore[arg-type]
        return content, ExportedFile(content, file_format=file_format)
    needs_op = metadata.needs_package or metadata.plugin is not None
    if metadata.plugin is not None:
        plugins.require_op()
    backend = None if needs_op else "gather"
    traced = trace_program(program, min_size=metadata.min_size, fixed_size=fixed, backend=backend)  # type: ignore[arg-type]
    if file_format == "pt2":
        content = pt2_bytes(traced, metadata)
        return content, ExportedFile(content, file_format=file_format)
    opset = DEFAULT_OPSET if opset is None else opset
    if metadata.plugin is not None:
        traced = plugins.with_plugin(traced)
        return onnx_bytes(traced, metadata, opset=opset, translations=plugins.translations()), traced.module()
    content = onnx_bytes(traced, metadata, opset=opset)
    return content, ExportedFile(content, file_format=file_format)


def _detector(run: Any, metadata: Metadata) -> nn.Module:
    from sparse_detr.export.detector import ExportedDetector

    return ExportedDetector(run, metadata)
