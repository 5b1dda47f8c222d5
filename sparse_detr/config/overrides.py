"""Apply overrides of the command line to a config of either kind."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from detectron2.utils.registry import locate
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_detr.config.rules import TRAINING
from sparse_detr.errors import UserError

OVERRIDE_ERRORS = (
    *(HydraException, OmegaConfBaseException),
    *(
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        NotImplementedError,
        RecursionError,
        MemoryError,
    ),
)
"""Errors that hydra, omegaconf and yacs raise for keys and values that they cannot use."""


def apply_to_yacs(cfg: CfgNode, path: str, overrides: Sequence[str]) -> None:
    """Set "PATH.KEY", "value" pairs in place; where the key holds a text, the value is not parsed.

    Raises:
        UserError: an override is of the other style, or its key or value does not fit.
    """
    for override in overrides[::2]:
        if "=" in override:
            key, _, value = override.partition("=")
            raise UserError(f"{path} is a yacs config; write {key} {value} instead of {override}")
    if len(overrides) % 2:
        raise UserError(f"overrides of a yacs config come in pairs KEY VALUE; {overrides[-1]!r} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            _set_yacs(cfg, key, value)
        except OVERRIDE_ERRORS as error:
            raise UserError(f"{key} {value}: {_first_line(error)}") from error


def _set_yacs(cfg: CfgNode, key: str, value: str) -> None:
    *parents, name = key.split(".")
    node: Any = cfg
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    current = node.get(name) if isinstance(node, dict) else None
    if isinstance(current, str):
        node[name] = value
    elif isinstance(current, float) and isinstance(_literal(value), int):
        cfg.merge_from_list([key, float(value)])
    else:
        cfg.merge_from_list([key, value])


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def apply_to_lazy(cfg: DictConfig, path: str, overrides: Sequence[str]) -> DictConfig:
    """Set "path.key=value" in place; where the key holds a text, the value is not parsed, else hydra parses it.

    Raises:
        UserError: an override is of the other style, its key does not exist, or its value cannot be read.
    """
    for index, override in enumerate(overrides):
        if "=" not in override:
            value = overrides[index + 1] if index + 1 < len(overrides) else "VALUE"
            raise UserError(f"{path} is a lazy config; write {override}={value} instead of {override} {value}")
    for override in overrides:
        try:
            cfg = _set_lazy(cfg, override)
        except OVERRIDE_ERRORS as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{override}: {_first_line(error)}; quote the value if it is a text") from error
    return cfg


def _set_lazy(cfg: DictConfig, override: str) -> DictConfig:
    key, _, value = override.partition("=")
    key = key.strip()
    _check_key(cfg, key)
    if _holds_text(cfg, key) and not (key.endswith(".names") and value.startswith("[")):
        OmegaConf.update(cfg, key, _as_text(cfg, key, value))
        return cfg
    group = isinstance(OmegaConf.select(cfg, key), DictConfig)
    cfg = LazyConfig.apply_overrides(cfg, [override])
    if group and not isinstance(OmegaConf.select(cfg, key), DictConfig | None):
        raise UserError(f"{key} is a group of settings, not a value; set {key}.NAME=VALUE")
    return cfg


def _holds_text(cfg: DictConfig, key: str) -> bool:
    try:
        return isinstance(OmegaConf.select(cfg, key), str)
    except OmegaConfBaseException:  # an interpolation of a missing key
        return False


def _as_text(cfg: DictConfig, key: str, value: str) -> str:
    """Escape `value` so that omegaconf reads it as it is; a `${...}` that can be resolved stays an interpolation."""
    if "${" not in value:
        return value
    try:
        probe = OmegaConf.create({"value": value})
        probe._set_parent(cfg)
        if not any(text in value for text in ("\\${", "${" + key + "}")) and probe.value is not None:
            return value
    except OmegaConfBaseException:
        pass
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def _check_key(cfg: DictConfig, key: str) -> None:
    """Refuse a key that does not exist.

    An argument of the callable of a group may be added, and a setting of the training, which the saved config of an
    older version may lack.
    """
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    if key in TRAINING and isinstance(parent, DictConfig):
        return
    if isinstance(parent, DictConfig) and name not in parent and not accepts(parent.get("_target_"), name):
        known = [str(existing) for existing in parent if existing != "_target_"]
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"there are {', '.join(sorted(known))}"
        raise UserError(f"the config has no key {key!r}; {hint}")
    if parent is None:
        raise UserError(f"the config has no key {parent_key!r}, so {key!r} cannot be set")


def accepts(target: str | Callable | None, name: str) -> bool:
    """Return whether the callable that a config names takes an argument of this name."""
    try:
        function: Any = locate(target) if isinstance(target, str) else target
        parameters = inspect.signature(function).parameters
    except Exception:  # importing what a config names may raise anything
        return False
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _first_line(error: BaseException) -> str:
    """Return the first line of an error; the rest only points at a place in the text."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    return text.splitlines()[0] if text else type(error).__name__
