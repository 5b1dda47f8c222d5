"""Load a config of either kind and apply overrides in its own style."""

import ast
import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from sparse_detr.config.keys import add_detr_config
from sparse_detr.errors import UserError

Config = CfgNode | DictConfig


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `overrides`.

    Args:
        path: LazyConfig in Python, yacs yaml, or the `config.yaml` that a lazy run wrote; told apart by content.
            Like Detectron2's own loader it may run code that the file names: load only files you trust.
        overrides: "path.key=value" for a lazy config, "PATH.KEY", "value" pairs for yacs.

    Returns:
        DictConfig for both kinds of lazy config, CfgNode for yacs.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} does not exist (working directory: {os.getcwd()})")
    if config_kind(path) == "yacs":
        return _load_yacs(path, overrides)
    return _load_lazy(path, overrides)


def config_kind(path: str) -> str:
    """ "python", "dump" (a lazy config written as yaml) or "yacs", decided by what is in the file."""
    with open(path) as file:
        text = file.read()
    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        node = None
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        return "yacs" if all(key.isupper() for key in keys) else "dump"
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise UserError(f"{path} is neither yaml nor Python: {error}") from error
    return "python"


def _load_yacs(path: str, overrides: Sequence[str]) -> CfgNode:
    for override in overrides[::2]:
        if "=" in override:
            key, _, value = override.partition("=")
            raise UserError(f"{path} is a yacs config; write {key} {value} instead of {override}")
    if len(overrides) % 2:
        raise UserError(f"overrides of a yacs config come in pairs KEY VALUE; {overrides[-1]!r} has no value")
    cfg = get_cfg()
    add_detr_config(cfg)
    try:
        cfg.merge_from_file(path)
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError) as error:  # yacs raises all three for wrong keys and types
        raise UserError(f"{path}: {error.args[0]}") from error
    return cfg


def _load_lazy(path: str, overrides: Sequence[str]) -> DictConfig:
    _check_lazy_style(path, overrides)
    cfg = LazyConfig.load(path)
    for override in overrides:
        _check_key(cfg, override.partition("=")[0].strip())
    cfg = LazyConfig.apply_overrides(cfg, list(overrides))
    _register_data(cfg)
    return cfg


def _register_data(cfg: DictConfig) -> None:
    """Call what the config itself names to register its data sets; those of a quick config do not replace others."""
    for call in OmegaConf.select(cfg, "dataloader.register") or []:
        instantiate(call)


def _check_lazy_style(path: str, overrides: Sequence[str]) -> None:
    for index, override in enumerate(overrides):
        if "=" not in override:
            value = overrides[index + 1] if index + 1 < len(overrides) else "VALUE"
            raise UserError(f"{path} is a lazy config; write {override}={value} instead of {override} {value}")


def _check_key(cfg: DictConfig, key: str) -> None:
    """Refuse a key that would be added silently, unless it is an argument of the callable it is added to."""
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    if isinstance(parent, DictConfig) and name not in parent and not _accepts(parent.get("_target_"), name):
        known = [str(existing) for existing in parent if existing != "_target_"]
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"there are {', '.join(sorted(known))}"
        raise UserError(f"the config has no key {key!r}; {hint}")
    if parent is None:
        raise UserError(f"the config has no key {parent_key!r}, so {key!r} cannot be set")


def _accepts(target: str | Callable | None, name: str) -> bool:
    function: Any = locate(target) if isinstance(target, str) else target
    if not callable(function):
        return False
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
