"""Make a detector from a config of either kind: the model, the preprocessing of its images and its class names.

Every command, script and application goes through this module.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparse_detr.config.building import build_part, build_yacs
from sparse_detr.config.kinds import Config, kind_of, names_in
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


def build_detector(cfg: Config, *, device: str | None = None) -> nn.Module:
    """Build the model that a config describes, in training mode, without loading weights; `cfg` is not changed.

    Args:
        device: the model's device; None takes the config's.

    Raises:
        UserError: the model cannot be built; names the key of the innermost part that fails.
    """
    return kind_of(cfg).choose(lazy=_from_lazy, yacs=_from_yacs)(cfg, device)


def _from_lazy(cfg: DictConfig, device: str | None) -> nn.Module:
    return build_part(cfg, "model").to(device or OmegaConf.select(cfg, "train.device") or "cpu")


def _from_yacs(cfg: CfgNode, device: str | None) -> nn.Module:
    import sparse_detr.recipes  # noqa: F401 registers the names

    if device is not None:
        cfg = kind_of(cfg).copy()
        kind_of(cfg).set("train.device", device)
    return build_yacs("the model", build_model, cfg)


def usable_device(cfg: Config) -> str:
    """Return the config's device, or the CPU if this machine has no GPU."""
    import torch

    wanted = str(kind_of(cfg).get("train.device") or "cpu")
    return "cpu" if wanted.startswith("cuda") and not torch.cuda.is_available() else wanted


def build_test_mapper(cfg: Config) -> Mapper:
    """Build the preprocessing of the config's evaluation: a record of Detectron2 -> an input of the model.

    Raises:
        UserError: the config does not describe it.
    """
    return kind_of(cfg).choose(lazy=_lazy_test_mapper, yacs=_yacs_test_mapper)(cfg)


def _lazy_test_mapper(cfg: DictConfig) -> Mapper:
    if OmegaConf.select(cfg, "dataloader.test.mapper") is None:
        raise UserError(
            "the config has no dataloader.test.mapper, which says how images are resized for the model; "
            "give the config that the training was started with, and --train-json"
        )
    return build_part(cfg, "dataloader.test.mapper")


def _yacs_test_mapper(cfg: CfgNode) -> Mapper:
    from sparse_detr.data.mapper import DetrDatasetMapper

    return DetrDatasetMapper(cfg, is_train=False)


def build_train_mapper(cfg: Config) -> Mapper:
    """Build the preprocessing of the config's training, with its augmentation: a record -> an input of the model.

    Raises:
        UserError: the config does not describe it.
    """
    return kind_of(cfg).choose(lazy=_lazy_train_mapper, yacs=_yacs_train_mapper)(cfg)


def _lazy_train_mapper(cfg: DictConfig) -> Mapper:
    if OmegaConf.select(cfg, "dataloader.train.mapper") is None:
        raise UserError("the config has no dataloader.train.mapper, which says how images are augmented; add it")
    return build_part(cfg, "dataloader.train.mapper")


def _yacs_train_mapper(cfg: CfgNode) -> Mapper:
    from sparse_detr.data.mapper import DetrDatasetMapper

    return DetrDatasetMapper(cfg, is_train=True)


def class_names_of(cfg: Config) -> list[str]:
    """Return the class names of the config's own data, or else of its data set; [] if they are unknown."""
    from sparse_detr.data.annotations import read_coco_file

    own = kind_of(cfg).get("train.own_data") or {}
    own_json = own.get("train_json") or own.get("TRAIN_JSON")
    if own_json and os.path.isfile(own_json):
        return list(read_coco_file(own_json).class_names.values())
    for name in names_in(cfg, "test") + names_in(cfg, "train"):
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            return list(classes)
    return []


def set_num_classes(cfg: Config, number: int) -> None:
    """Set the model's number of classes, in place, with one logit a class.

    A model whose `class_channels` pick as many classes out of more logits stays as it is.
    """
    kind = kind_of(cfg)
    if len(kind.get("model.class_channels") or ()) != number:
        kind.set("model.num_classes", number)
        kind.set("model.class_channels", None)
