"""Read and set the output folder, the device and the seed in a config of either kind."""

import logging
import os

import torch
from detectron2.utils import comm

from sparse_detr.config.kinds import Config, kind_of
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)


def set_output_dir(cfg: Config, output_dir: str) -> None:
    """Set the output folder of the run, in place."""
    kind_of(cfg).set("train.output_dir", output_dir)


def expand_output_dir(cfg: Config) -> None:
    """Replace a leading `~` in the output folder by the home folder, as a shell does."""
    set_output_dir(cfg, os.path.expanduser(kind_of(cfg).get("train.output_dir")))


def check_device_of(cfg: Config) -> None:
    """Raise a `UserError` if the config asks for a device that this machine lacks, as one from elsewhere may."""
    device = kind_of(cfg).get("train.device")
    if problem := device_problem(str(device)):
        remedy = kind_of(cfg).assignment("train.device", "cpu")
        raise UserError(f"the config asks for device {device!r}, {problem}; add {remedy}")


def device_problem(device: str) -> str:
    """Return why a device cannot be used here, as the end of a sentence; "" if it can."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        return "which torch does not know"
    if kind == "meta":
        return "which holds no values"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "which cannot be used here"
    if kind == "cuda" and not torch.cuda.is_available():
        return "but no GPU can be used here"
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        return f"but there are {torch.cuda.device_count()} GPUs"
    return ""


def share_seed(cfg: Config) -> None:
    """Replace a negative seed by a random one that all processes share, so that the saved config repeats the run."""
    seed = kind_of(cfg).get("train.seed")
    if seed is not None and seed >= 0:
        return
    seed = comm.shared_random_seed() % 2**31
    logger.info(f"the random seed of this run is {seed}")
    kind_of(cfg).set("train.seed", seed)
