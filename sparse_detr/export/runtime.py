"""Run an exported file: tensors in, tensors out. No module of this package takes part in the computation."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparse_detr.errors import UserError
from sparse_detr.export.formats import (
    INPUTS,
    JSON_FILE,
    OUTPUTS,
    TO_RUN_ONNX,
    format_of,
    require_packages,
    without_warnings,
)
from sparse_detr.export.metadata import KEY, Metadata

Detections = tuple[Tensor, Tensor, Tensor]
Run = Callable[[Tensor, Tensor], Detections]
ELSEWHERE = "only ONNX files run there; export the model to .onnx and install onnxruntime-gpu"


class ExportedFile:
    """An opened file of `sparse-detr export`; call it with images and sizes.

    Args:
        file: path, or content.
        device: "cpu"; "cuda" for ONNX with onnxruntime-gpu.
        file_format: of the content, or of a path without a suffix that names it.
        name: of the content, for messages.

    Attributes:
        metadata: what the file says of itself.

    Raises:
        UserError: the file cannot be read, a package that it needs is missing, or the device cannot be used.
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes,
        *,
        device: str = "cpu",
        file_format: str | None = None,
        name: str = "the file",
    ) -> None:
        if not isinstance(file, bytes):
            name = os.fspath(file)
            file_format = format_of(file, file_format)
            file = _content(name)
        assert file_format in OPEN, f"no format {file_format}"
        self.metadata, self._run = OPEN[file_format](file, name, device)

    def __call__(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect objects.

        Args:
            images: (B, channels, H, W) pixels of 0 to 255 on the CPU, in the order of channels of the metadata.
            sizes: (B, 2), (h, w) of every image, which lies at the top left.

        Returns:
            Boxes (B, D, 4), x1, y1, x2, y2 in pixels; scores (B, D); labels (B, D). Rows with the score 0 only fill the
            batch.

        Raises:
            UserError: the file does not take this size.
        """
        self._check(images, sizes)
        return self._run(images.float().contiguous(), sizes.long().contiguous())

    def _check(self, images: Tensor, sizes: Tensor) -> None:
        height, width = images.shape[-2:]
        fixed, least = self.metadata.fixed_size, self.metadata.min_size
        if fixed is not None and [height, width] != fixed:
            raise UserError(f"a batch of {height} x {width} pixels, but the file takes {fixed[0]} x {fixed[1]}")
        if fixed is None and min(height, width) < least:
            raise UserError(f"a batch of {height} x {width} pixels; pad it to at least {least} on both sides")
        if sizes.shape != (len(images), 2):
            raise UserError(f"sizes is {tuple(sizes.shape)}; give ({len(images)}, 2), the (h, w) of every image")


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path!r} (working directory: {os.getcwd()})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _open_onnx(content: bytes, name: str, device: str) -> tuple[Metadata, Run]:
    require_packages(TO_RUN_ONNX, f"running {name}")
    import onnxruntime

    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.partition(":")[0])
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise UserError(f"device is {device!r}, but onnxruntime has {', '.join(available)}; see its installation guide")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about the exporter's graph
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[wanted])
    except Exception as error:
        raise _unreadable(name, error) from error
    record = session.get_modelmeta().custom_metadata_map.get(KEY)

    def run(images: Tensor, sizes: Tensor) -> Detections:
        found = session.run(list(OUTPUTS), dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True)))
        boxes, scores, labels = map(torch.from_numpy, found)
        return boxes, scores, labels

    return Metadata.from_json(record, name), run


def _open_pt2(content: bytes, name: str, device: str) -> tuple[Metadata, Run]:
    _require_cpu(name, device)
    extra = {JSON_FILE: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=extra).module()
    except Exception as error:
        raise _unreadable(name, error) from error
    return Metadata.from_json(extra[JSON_FILE], name), _without_gradients(program)


def _open_torchscript(content: bytes, name: str, device: str) -> tuple[Metadata, Run]:
    _require_cpu(name, device)
    extra = {JSON_FILE: ""}
    try:
        with without_warnings():
            program = torch.jit.load(io.BytesIO(content), map_location="cpu", _extra_files=extra)
    except Exception as error:
        raise _unreadable(name, error) from error
    return Metadata.from_json(extra[JSON_FILE], name), _without_gradients(program)


OPEN: dict[str, Callable[[bytes, str, str], tuple[Metadata, Run]]] = {
    "onnx": _open_onnx,
    "pt2": _open_pt2,
    "torchscript": _open_torchscript,
}


def _without_gradients(program: Callable[..., Detections]) -> Run:
    def run(images: Tensor, sizes: Tensor) -> Detections:
        with torch.no_grad():
            return program(images, sizes)

    return run


def _require_cpu(name: str, device: str) -> None:
    if device != "cpu":
        raise UserError(f"{name} runs on the CPU, not on {device!r}: {ELSEWHERE}")


def _unreadable(name: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines()
    reason = lines[0][:300].rstrip(".") if lines else type(error).__name__
    return UserError(
        f"{name} cannot be opened: {reason}; it is damaged, or made for another runtime or version: export it again"
    )
