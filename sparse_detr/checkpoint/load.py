"""Reading checkpoint files safely."""

import pickle
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparse_detr.errors import UserError

# plain containers that public training scripts save beside the weights; they run no code when read
SAFE_TYPES: list[Any] = [Namespace, Counter]


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from it.

    Raises:
        UserError: there is no such file, it is truncated, it is no checkpoint, or it needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; check the path.")
    if path.suffix == ".pkl":
        raise UserError(
            f"{path} is a pickle of Detectron2's model zoo. It needs no conversion: give it as train.init_checkpoint "
            "(lazy) or MODEL.WEIGHTS (yaml), which Detectron2's checkpointer reads."
        )
    checkpoint = _read(path)
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; expected a dict of weights.")
    return dict(checkpoint)


def _read(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds Python objects beside weights and is not read, since that could run code: "
                f"{_first_global(error)}. Save its weights alone: torch.save(model.state_dict(), ...)."
            ) from error
        raise UserError(_broken(path)) from error
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError, AttributeError, OSError) as error:
        raise UserError(_broken(path)) from error


def _broken(path: Path) -> str:
    if packed := _packed_checkpoints(path):
        return f"{path} is an archive; unpack it and give {' or '.join(packed)} instead."
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is truncated or no checkpoint; compare its size and checksum, then fetch it again."


def _packed_checkpoints(path: Path) -> list[str]:
    """Checkpoints in a zip archive, as which some are published."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if name.endswith((".pth", ".pt"))]


def _first_global(error: Exception) -> str:
    """The line of torch's message that names the object; the rest of it explains how to allow it."""
    return next(line.strip() for line in str(error).splitlines() if "GLOBAL" in line)
