"""Values that the command line sets in a config of either kind."""

import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import OmegaConf

from sparse_detr.config.load import Config
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)


def set_output_dir(cfg: Config, output_dir: str) -> None:
    """Let the run write into `output_dir`."""
    if isinstance(cfg, CfgNode):
        cfg.OUTPUT_DIR = output_dir
    else:
        cfg.train.output_dir = output_dir


def expand_output_dir(cfg: Config) -> None:
    """Let a `~` in the output folder be the home folder, as a shell does at the beginning of a word."""
    yacs = isinstance(cfg, CfgNode)
    set_output_dir(cfg, os.path.expanduser(cfg.OUTPUT_DIR if yacs else cfg.train.output_dir))


def check_device(cfg: Config) -> None:
    """Raise a `UserError` if the config wants a GPU that is not there, as a dumped config may on another machine."""
    yacs = isinstance(cfg, CfgNode)
    device = cfg.MODEL.DEVICE if yacs else OmegaConf.select(cfg, "train.device")
    remedy = "MODEL.DEVICE cpu" if yacs else "train.device=cpu"
    if str(device).startswith("mps") and not torch.backends.mps.is_available():
        raise UserError(f"the config asks for device {device!r}, which cannot be used here; add {remedy}")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"the config asks for device {device!r}, but no GPU can be used here; add {remedy}")
    index = torch.device(device).index if str(device).startswith("cuda") else None
    if index is not None and index >= torch.cuda.device_count():
        raise UserError(f"the config asks for device {device!r}, but there are {torch.cuda.device_count()} GPUs")


def share_seed(cfg: Config) -> None:
    """Replace a seed below 0, "any", by one that all processes share, so that the saved config can repeat the run."""
    seed = cfg.SEED if isinstance(cfg, CfgNode) else cfg.train.get("seed", -1)
    if seed >= 0:
        return
    seed = comm.shared_random_seed() % 2**31
    logger.info(f"The random seed of this run is {seed}")
    if isinstance(cfg, CfgNode):
        cfg.SEED = seed
    else:
        cfg.train.seed = seed
