"""Load a config, lazy or yacs, and apply overrides in the style of its kind."""

import ast
import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig, OmegaConf

from sparse_detr.config.building import build_part
from sparse_detr.config.check_settings import check_settings
from sparse_detr.config.derived import derive_yacs
from sparse_detr.config.keys import add_detr_config
from sparse_detr.config.kinds import Config
from sparse_detr.config.overrides import apply_to_lazy, apply_to_yacs
from sparse_detr.config.removed import successor_of
from sparse_detr.errors import UserError


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `overrides`.

    Args:
        path: LazyConfig in Python, yacs yaml, or the `config.yaml` that a lazy run wrote; told apart by content.
            Like Detectron2's loader, this may run code that the file names: load only files you trust.
        overrides: "path.key=value" for a lazy config, "PATH.KEY", "value" pairs for yacs.

    Returns:
        DictConfig for both kinds of lazy config, CfgNode for yacs.

    Raises:
        UserError: the file cannot be read or run, or a setting in it or in `overrides` cannot be used.
    """
    kind = config_kind(path)
    cfg: Config = _load_yacs(path, overrides) if kind == "yacs" else _load_lazy(path, kind, overrides)
    check_settings(cfg)
    if kind == "yacs":
        derive_yacs(cfg, path, overrides)
    else:
        _register_data(cfg)
    return cfg


def config_kind(path: str) -> str:
    """Return "python", "dump" (a lazy config written as yaml) or "yacs", as the content of the file says."""
    text = _text_of(path)
    try:
        node = yaml.compose(text)
    except (yaml.YAMLError, RecursionError):
        node = None
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        return "yacs" if all(isinstance(key, str) and key.isupper() for key in keys) else "dump"
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} is neither yaml nor Python: {error}") from error
    return "python"


def _text_of(path: str) -> str:
    """Return the text of a config file; an empty file is refused."""
    if os.path.isdir(path):
        raise UserError(f"config file {path!r} is a folder; name a file in it")
    if not os.path.isfile(path):
        missing = f"config file {path!r} does not exist (working directory: {os.getcwd()})"
        raise UserError(successor_of(path) or missing)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from error
    except OSError as error:
        raise UserError(f"config file {path!r} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"config file {path!r} is empty")
    if text.startswith("\ufeff"):
        raise UserError(f"{path} begins with a byte order mark; save it as UTF-8 without one")
    return text


def _load_yacs(path: str, overrides: Sequence[str]) -> CfgNode:
    from sparse_detr.recipes.meta_arch import RECIPES

    cfg = get_cfg()
    add_detr_config(cfg)
    try:
        cfg.merge_from_file(path)
    except Exception as error:  # yaml and yacs raise many types, and yaml may run code
        raise UserError(f"{path}: {_described(error, path)}") from error
    apply_to_yacs(cfg, path, overrides)
    if cfg.MODEL.META_ARCHITECTURE not in RECIPES:
        _fit_to_detectron2(cfg)
    return cfg


def _fit_to_detectron2(cfg: CfgNode) -> None:
    """Set what Detectron2's own models need; refuse what they do not read."""
    if cfg.TEST.DETECTIONS_PER_IMAGE is None:
        cfg.TEST.DETECTIONS_PER_IMAGE = 100
    if cfg.TEST.SUPPRESS_DUPLICATES is not None:
        raise UserError(
            f"TEST.SUPPRESS_DUPLICATES is {cfg.TEST.SUPPRESS_DUPLICATES}, but {cfg.MODEL.META_ARCHITECTURE} does not "
            "read it; remove the key"
        )


def _load_lazy(path: str, kind: str, overrides: Sequence[str]) -> DictConfig:
    endings = (".py",) if kind == "python" else (".yaml", ".yml")
    if not path.endswith(endings):
        what = "Python" if kind == "python" else "a lazy config written as yaml"
        raise UserError(f"{path} holds {what}; let its name end in {' or '.join(endings)}")
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # a config is code, which may raise anything
        raise UserError(f"{path}: {_described(error, path)}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} holds no config; give a LazyConfig in Python or yaml")
    return apply_to_lazy(cfg, path, overrides)


def _register_data(cfg: DictConfig) -> None:
    """Call the function that the config names to register its data sets, if there is one."""
    if OmegaConf.select(cfg, "dataloader.register"):
        build_part(cfg, "dataloader.register")


def _described(error: Exception, path: str) -> str:
    """Return the text of an error in a config's code, with the line if it is in the file itself."""
    if isinstance(error, FileNotFoundError) and (successor := successor_of(str(error.filename))):
        return successor
    line, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = f"line {trace.tb_lineno}: "
        trace = trace.tb_next
    reason = error.args[0] if isinstance(error, KeyError | ValueError | AssertionError) and error.args else error
    return f"{line}{type(error).__name__}: {reason}"
