"""The formats of exported files, and a traced program as the bytes of a file."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from sparse_detr.errors import UserError
from sparse_detr.export.metadata import KEY, Metadata

SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".torchscript": "torchscript"}
FORMATS = tuple(SUFFIXES.values())
INPUTS, OUTPUTS = ("images", "sizes"), ("boxes", "scores", "labels")
JSON_FILE = f"{KEY}.json"
TO_WRITE_ONNX, TO_RUN_ONNX = ("onnx", "onnxscript", "onnxruntime"), ("onnxruntime",)
OPSETS = range(18, 24)
DEFAULT_OPSET = 18
MAX_PROTOBUF = 2**31 - 1


def format_of(path: str | os.PathLike[str], given: str | None = None) -> str:
    """Return the format of a file to write: the given one, or that of the suffix.

    Raises:
        UserError: there is no such format.
    """
    if given is not None:
        if given not in FORMATS:
            raise UserError(f"format {given!r} is unknown; give one of {', '.join(FORMATS)}")
        return given
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(f"NAME{suffix}" for suffix in SUFFIXES)
        raise UserError(f"{os.fspath(path)}: the suffix {suffix!r} names no format; write {known}, or give --format")
    return SUFFIXES[suffix]


def require_packages(packages: Sequence[str], why: str) -> None:
    """Raise a `UserError` that names those of the packages that are missing."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"{why} needs {', '.join(missing)}; install: pip install {names} (or sparse_detr[export])")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide warnings of PyTorch about its own exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pt2_bytes(program: ExportedProgram, metadata: Metadata) -> bytes:
    """Return the file of `torch.export`."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={JSON_FILE: metadata.to_json()})
    return file.getvalue()


def torchscript_bytes(script: torch.jit.ScriptModule, metadata: Metadata) -> bytes:
    """Return the file of TorchScript."""
    file = io.BytesIO()
    with without_warnings():
        torch.jit.save(script, file, _extra_files={JSON_FILE: metadata.to_json()})
    return file.getvalue()


def onnx_bytes(
    program: ExportedProgram,
    metadata: Metadata,
    *,
    opset: int = DEFAULT_OPSET,
    translations: dict[Callable, Callable] | None = None,
) -> bytes:
    """Return the file of ONNX.

    Args:
        opset: version of ONNX's operators.
        translations: operators of PyTorch and what stands for them, see `torch.onnx.export`.

    Raises:
        UserError: the file would be larger than protobuf allows.
    """
    with without_warnings():
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=(_axes(metadata), {0: "batch"}),
            custom_translation_table=translations,
        )
    assert written is not None, "without a path, the exporter returns the program"
    written.model.metadata_props[KEY] = metadata.to_json()
    _name_outputs(written.model.graph.outputs)
    proto = written.model_proto
    if (size := proto.ByteSize()) > MAX_PROTOBUF:
        raise UserError(f"the model has {size / 2**30:.1f} GiB, but an ONNX file holds 2; export to .pt2")
    return proto.SerializeToString()


def _axes(metadata: Metadata) -> dict[int, str]:
    """Return the names of the open axes of the images."""
    return {0: "batch"} if metadata.fixed_size is not None else {0: "batch", 2: "height", 3: "width"}


def _name_outputs(outputs: Sequence[Any]) -> None:
    """Name the open axes of the outputs, which are formulas of the size of the images."""
    from onnxscript import ir

    for value in outputs:
        number = value.shape[1] if isinstance(value.shape[1], int) else "detections"
        value.shape = ir.Shape(["batch", number, *value.shape[2:]])
