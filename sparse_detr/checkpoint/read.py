"""Read checkpoint files without running their code."""

import json
import mmap
import re
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file as load_safetensors

from sparse_detr.checkpoint.arrays import ForbiddenCall, read_arrays
from sparse_detr.checkpoint.transformers_names import MODEL_TYPES, training_arguments
from sparse_detr.errors import UserError

# plain containers that public training scripts save beside the weights; reading them runs no code
SAFE_TYPES: list[Any] = [Namespace, Counter]

FOLDER = 0x10  # the attribute by which a zip archive marks a folder
# the files that Hugging Face's `save_pretrained` writes
CONFIG = "config.json"
INDEX = ".index.json"
PRETRAINED = (
    "model.safetensors",
    "pytorch_model.bin",
    f"model.safetensors{INDEX}",
    f"pytorch_model.bin{INDEX}",
)
SUFFIXES = (".pth", ".safetensors", ".bin", INDEX)  # of checkpoints, as a message names them
# what a file starts with -> what it is
TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
ZIP = b"PK\x03\x04"
OTHER_KINDS = {
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<!doctype html": "is a web page, so the download has failed; fetch it again",
    b"<html": "is a web page, so the download has failed; fetch it again",
    b"<?xml": "is an XML text, so the download has failed; fetch it again",
    b"\x1f\x8b": "is packed with gzip; unpack it and give the file inside",
    b"\x89hdf": "is an HDF5 file, which is not read; save the weights with torch.save",
}


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from it; its content decides the format, not its name.

    Reads files of `torch.save` and of safetensors; the pickles of arrays of Detectron2's and Caffe2's model zoos, which
    get the keys that tell Detectron2's checkpointer to match names by their ends; and folders of Hugging Face's
    `save_pretrained`, whose weights may be in several files.

    Args:
        path: a file or a folder. A `config.json` of Hugging Face, in the folder or beside the file, is read too.

    Raises:
        UserError: the file does not exist, is damaged, is no checkpoint, or cannot be read without running its code.
    """
    path = Path(path)
    path = _weights_in(path) if (path / CONFIG).is_file() else path
    if path.name.endswith(INDEX):
        checkpoint = _read_shards(existing_file(path))
    else:
        checkpoint = _read_by_content(existing_file(path))
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; give a dict of weights")
    checkpoint = dict(checkpoint)
    if "args" not in checkpoint and (config := _config_beside(path)):
        weights = checkpoint if all(isinstance(value, torch.Tensor) for value in checkpoint.values()) else None
        checkpoint = ({"model": weights} if weights else checkpoint) | {"args": training_arguments(config)}
    return checkpoint


def _weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder of `save_pretrained`."""
    found = next((folder / name for name in PRETRAINED if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has a {CONFIG} but none of {', '.join(PRETRAINED)}; fetch the weights as well")
    try:
        json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / CONFIG} is damaged ({error}); fetch it again") from error
    return found


def _read_shards(index: Path) -> dict[str, Any]:
    """Read the files that an index names, all in its folder."""
    file_of = _weight_map(index)
    names = sorted(set(file_of.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise UserError(f"{index} names a file outside its folder: {outside[0]}; fetch it again")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{index} names {absent[0]}, which is not beside it; fetch that file as well")
    weights: dict[str, Any] = {}
    for name in names:
        shard = _read_by_content(index.parent / name)
        weights |= shard if isinstance(shard, Mapping) else {}
    if missing := [entry for entry in file_of if entry not in weights]:
        raise UserError(
            f"{index} names {len(missing)} entries that its files do not hold, such as {missing[0]}; "
            "fetch the index and its files again"
        )
    return weights


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of every entry that an index names."""
    try:
        file_of = json.loads(index.read_text())["weight_map"]
        if file_of and all(isinstance(name, str) and name for name in file_of.values()):
            return file_of
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror or error}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(f"{index} is no index of weights (weight_map: entry to file); fetch it again")


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Return the `config.json` of Hugging Face in the folder of a file; None if there is none."""
    file = path.parent / CONFIG
    try:
        config = json.loads(file.read_text()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("model_type") in MODEL_TYPES else None


def existing_file(path: Path) -> Path:
    """Return the path if it is a file; else raise a `UserError`."""
    if path.is_dir():
        found = (file.name for file in path.iterdir() if file.name.endswith(SUFFIXES))
        inside = ", ".join(sorted(found)[:5])
        raise UserError(f"{path} is a folder; give a checkpoint in it{f', such as {inside}' if inside else ''}")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; check the path")
    return path


def _read_by_content(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if head.startswith(ZIP):
            return _read_zip(path)
        if head[8:10] == b'{"':
            return load_safetensors(path)
        return _load_torch(path) if TORCH_LEGACY in head else _read_pickle(path)
    except UserError:
        raise
    except ForbiddenCall as error:
        raise UserError(_needs_code(path, str(error))) from error
    except Exception as error:  # a damaged file may raise anything
        if call := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(_needs_code(path, call[1])) from error
        raise UserError(_broken(path, head)) from error


def _load_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(SAFE_TYPES):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_zip(path: Path) -> Any:
    """Read a file of `torch.save` after a check of its checksums, which torch ignores."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if not any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
            packed = [ascii(name).strip("'") for name in names if name.endswith((".pth", ".pt", ".pkl"))]
            remedy = (
                f"unpack it and give {' or '.join(packed[:5])}" if packed else "no checkpoint is in it; give another"
            )
            raise UserError(f"{path} is an archive; {remedy} instead")
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{path} is a TorchScript program; save its weights: torch.save(model.state_dict(), ...)")
        if not _is_sound(archive, path.stat().st_size):
            raise UserError(_broken(path, ZIP))
    return _load_torch(path)


def _is_sound(archive: zipfile.ZipFile, size: int) -> bool:
    """Return whether the members are as they were written; torch would read wrong numbers without an error."""
    members = archive.infolist()
    if any(member.external_attr & FOLDER for member in members):  # torch would return uninitialised memory for it
        return False
    if sum(member.file_size for member in members) > size:
        return False
    has_checksums = any(member.CRC for member in members)
    return not has_checksums or archive.testzip() is None


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        checkpoint = read_arrays(content)
    if not isinstance(checkpoint, dict):
        return checkpoint
    if "model" not in checkpoint:  # Caffe2's models keep their weights in "blobs", its backbones do not
        weights = checkpoint.get("blobs", checkpoint)
        weights = {name: value for name, value in weights.items() if not str(name).endswith("_momentum")}
        checkpoint = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    if isinstance(checkpoint["model"], dict):
        checkpoint["model"] = {name: _tensor(value) for name, value in checkpoint["model"].items()}
    return checkpoint


def _tensor(value: Any) -> Any:
    """Return a writable tensor for an array in any byte order; other values as they are."""
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=True))


def _needs_code(path: Path, call: str) -> str:
    return (
        f"{path} holds Python objects beside weights and is not read, since that could run code: {call}; "
        "save its weights alone: torch.save(model.state_dict(), ...)"
    )


def _broken(path: Path, head: bytes) -> str:
    start = head.lstrip().lower()
    if kind := next((words for mark, words in OTHER_KINDS.items() if start.startswith(mark)), None):
        return f"{path} {kind}"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is truncated or no checkpoint; compare its size and checksum, then fetch it again"
