"""One interface to the two kinds of config. No other module tests which kind a config is.

    kind_of(cfg).get("train.device")

Settings are named by their lazy keys for both kinds; `YACS_KEYS` gives the yacs key of each.
"""

from __future__ import annotations

import copy
import os
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Protocol, TypeVar

from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_detr.config.rules import TRAINING
from sparse_detr.errors import UserError

Config = CfgNode | DictConfig
T = TypeVar("T")

YACS_KEYS: dict[str, str] = {key: yacs for key, (yacs, _) in TRAINING.items() if yacs} | {
    "train.own_data": "DATASETS.OWN",
    "train.cudnn_benchmark": "CUDNN_BENCHMARK",
    "dataloader.train.dataset.names": "DATASETS.TRAIN",
    "dataloader.test.dataset.names": "DATASETS.TEST",
    "dataloader.train.mapper.value_range": "INPUT.VALUE_RANGE",
    "model.num_classes": "MODEL.DETR.NUM_CLASSES",
    "model.class_channels": "MODEL.DETR.CLASS_CHANNELS",
    "model.postprocess.num_detections": "TEST.DETECTIONS_PER_IMAGE",
    "model.postprocess.suppress_duplicates": "TEST.SUPPRESS_DUPLICATES",
}


class ConfigKind(Protocol):
    """The operations that a config of either kind offers. Keys are lazy keys."""

    def get(self, key: str) -> Any:
        """Return the value of a setting; None if it is missing."""

    def set(self, key: str, value: Any) -> None:
        """Set a setting in place."""

    def assignment(self, key: str, value: Any) -> str:
        """Return the override that sets the setting on the command line."""

    def text(self) -> str:
        """Return the whole config as yaml, for people to read."""

    def values(self) -> Any:
        """Return the whole config as plain groups and values, with interpolations resolved where possible."""

    def save(self, path: Path) -> None:
        """Write the config to a file that `load_config` can read."""

    def copy(self) -> Any:
        """Return a copy of the config that may be changed."""

    def choose(self, *, lazy: T, yacs: T) -> T:
        """Return the argument for configs of this kind."""


class LazyKind:
    """A lazy config."""

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg = cfg

    def get(self, key: str) -> Any:
        return OmegaConf.select(self._cfg, key)

    def set(self, key: str, value: Any) -> None:
        OmegaConf.update(self._cfg, key, value, merge=False)

    def assignment(self, key: str, value: Any) -> str:
        return f"{key}={value}"

    def text(self) -> str:
        return OmegaConf.to_yaml(self._cfg)

    def values(self) -> Any:
        try:
            return OmegaConf.to_container(self._cfg, resolve=True)
        except OmegaConfBaseException:  # a value refers to one that is not set yet
            return OmegaConf.to_container(self._cfg, resolve=False)

    def save(self, path: Path) -> None:
        LazyConfig.save(self._cfg, os.fspath(path))

    def copy(self) -> DictConfig:
        copied = copy.deepcopy(self._cfg)
        OmegaConf.set_readonly(copied, None)
        return copied

    def choose(self, *, lazy: T, yacs: T) -> T:
        return lazy


class YacsKind:
    """A yacs config, with this project's keys or without them."""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg

    def get(self, key: str) -> Any:
        *groups, name = YACS_KEYS[key].split(".")
        group = self._cfg
        for part in groups:
            group = group.get(part, CfgNode())
        return group.get(name)

    def set(self, key: str, value: Any) -> None:
        *groups, name = YACS_KEYS[key].split(".")
        setattr(reduce(getitem, groups, self._cfg), name, value)

    def assignment(self, key: str, value: Any) -> str:
        return f"{YACS_KEYS[key]} {value}"

    def text(self) -> str:
        return self._cfg.dump()

    def values(self) -> Any:
        return self._cfg

    def save(self, path: Path) -> None:
        path.write_text(self._cfg.dump(), encoding="utf-8")

    def copy(self) -> CfgNode:
        copied = self._cfg.clone()
        copied.defrost()
        return copied

    def choose(self, *, lazy: T, yacs: T) -> T:
        return yacs


def kind_of(cfg: Config) -> ConfigKind:
    """Wrap a config of either kind; changes go into `cfg` itself.

    Raises:
        UserError: `cfg` is not a config.
    """
    if isinstance(cfg, CfgNode):
        return YacsKind(cfg)
    if isinstance(cfg, DictConfig):
        return LazyKind(cfg)
    raise UserError(f"a config is a DictConfig (lazy) or a CfgNode (yacs), not a {type(cfg).__name__}")


def names_in(cfg: Config, part: str) -> list[str]:
    """Return the names of the data sets to "train" or to "test" on."""
    names = kind_of(cfg).get(f"dataloader.{part}.dataset.names")
    return [] if names is None else [names] if isinstance(names, str) else list(names)
