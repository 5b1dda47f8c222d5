"""Set up each process of a run: logs and seeds."""

import argparse
import logging
from pathlib import Path

import torch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from sparse_detr.config.kinds import Config, kind_of
from sparse_detr.config.run import TrainSettings
from sparse_detr.engine.output import survive_a_full_disk

logger = logging.getLogger(__name__)

_LOGGERS = ("fvcore", "detectron2", "sparse_detr")


def set_up_process(cfg: Config, settings: TrainSettings, args: argparse.Namespace) -> None:
    """Do what Detectron2's `default_setup` does, but leave `config.yaml` to the training, once it can start.

    Logs go to the terminal and to `log.txt` of the output folder; each rank seeds its own random numbers.
    """
    for name in _LOGGERS:
        setup_logger(settings.output_dir or None, distributed_rank=comm.get_rank(), name=name)
    survive_a_full_disk(*_LOGGERS)
    logger.info(f"rank of this process: {comm.get_rank()}, world size: {comm.get_world_size()}")
    logger.info("environment:\n" + collect_env_info())
    logger.info(f"command line arguments: {args}")
    text = Path(args.config_file).read_text(encoding="utf-8")
    logger.info(f"content of the config file {args.config_file}:\n{text}")
    seed_all_rng(None if settings.seed < 0 else settings.seed + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = bool(kind_of(cfg).get("train.cudnn_benchmark"))
