"""Build the parts that a config describes; an error names the key of the part."""

from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_detr.errors import UserError

WRONG_ARGUMENTS = (
    *(TypeError, ValueError, AssertionError, KeyError, IndexError, AttributeError, ArithmeticError, RuntimeError),
    *(ImportError, OmegaConfBaseException),
)
"""Errors that a class may raise for wrong arguments."""


def build_part(cfg: DictConfig, key: str) -> Any:
    """Instantiate a part of a lazy config.

    Raises:
        UserError: the part cannot be built; names the key of the innermost part that fails.
    """
    node = OmegaConf.select(cfg, key)
    if isinstance(node, DictConfig) and "_target_" not in node:
        raise UserError(f"{key} has no _target_, the class or function that makes it")
    try:
        return instantiate(node)
    except WRONG_ARGUMENTS as error:
        if isinstance(error, UserError) or _is_device_error(error):
            raise
        where, cause = _innermost_failure(key, node) or (key, error)
        raise UserError(f"{where} cannot be built: {_kind_and_reason(cause)}") from error


def build_yacs(what: str, build: Callable[..., Any], cfg: CfgNode, *args: Any) -> Any:
    """Call one of Detectron2's functions on a yacs config.

    Raises:
        UserError: the function fails.
    """
    try:
        return build(cfg, *args)
    except WRONG_ARGUMENTS as error:
        if isinstance(error, UserError) or _is_device_error(error):
            raise
        keys = "; see the keys MODEL.DETR and MODEL.BACKBONE" if what == "the model" else "; see the keys SOLVER"
        raise UserError(f"{what} cannot be built: {_kind_and_reason(error)}{keys}") from error


def _is_device_error(error: Exception) -> bool:
    """Return whether the device failed and not an argument."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)


def _innermost_failure(key: str, node: Any) -> tuple[str, Exception] | None:
    """Return the key of the deepest part that cannot be built by itself, and its error."""
    for name, child in _children(node):
        found = _innermost_failure(f"{key}.{name}", child)
        if found is not None:
            return found
    if not (isinstance(node, DictConfig) and "_target_" in node):
        return None
    try:
        instantiate(node)
    except WRONG_ARGUMENTS as error:
        return key, error
    return None


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    names = node if isinstance(node, DictConfig) else range(len(node)) if isinstance(node, ListConfig) else ()
    for name in names:
        try:
            child = node[name]
        except OmegaConfBaseException:
            continue
        if OmegaConf.is_config(child):
            yield name, child


def _kind_and_reason(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
