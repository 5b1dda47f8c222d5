"""Configs of this project by name, like `detectron2.model_zoo`.

A name is the path from the repository's root, with or without `projects/` and `configs/`, for example
`SparseDETR/sparse_detr_r50_rho10.py`, `DINO/dino_r50_4scale_12ep.yaml` or `quick/sparse_detr_mnv2.py`. `names()` lists
them. Every row of the papers' tables has a lazy config (`.py`); one row of each meta-architecture has a yaml too.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

# ruff: noqa: E402 - the check for Detectron2 must come before the imports that need it
from sparse_detr._detectron2 import require_detectron2
from sparse_detr.errors import UserError

require_detectron2()

from sparse_detr.config.load import Config, load_config
from sparse_detr.config.model import build_detector
from sparse_detr.config.removed import successor_of
from sparse_detr.engine.weights import check_finite_weights, load_weights

_PACKAGE = Path(__file__).parent
_ROOT = _PACKAGE / "_configs" if (_PACKAGE / "_configs").is_dir() else _PACKAGE.parent


def names() -> list[str]:
    """Return the names of all configs, for example `SparseDETR/sparse_detr_r50_rho10.py`, sorted."""
    projects = [path for path in _ROOT.glob("projects/*/configs/*.*") if path.suffix in (".py", ".yaml")]
    quick = [f"quick/{path.name}" for path in _ROOT.glob("configs/quick/*_mnv2.py")]
    return sorted([f"{path.parts[-3]}/{path.name}" for path in projects] + quick)


def get_config_file(config_path: str) -> str:
    """Return the path of a config file.

    Raises:
        UserError: there is no such config; names what replaces a removed config, else the configs of the project, else
            the projects.
    """
    first, _, rest = config_path.partition("/")
    places = (config_path, f"configs/{config_path}", f"projects/{first}/configs/{rest}")
    for candidate in (_ROOT / place for place in places):
        if candidate.is_file():
            return str(candidate)
    if successor := successor_of(config_path):
        raise UserError(successor)
    known = [name for name in names() if rest and name.startswith(f"{first}/")]
    known = known or sorted({f"{name.partition('/')[0]}/..." for name in names()})
    raise UserError(f"no config {config_path!r}; there are {', '.join(known)}")


def get_checkpoint_url(config_path: str) -> str:
    """Raise a `UserError`: this project hosts no weights; convert public ones with `sparse-detr convert`."""
    get_config_file(config_path)
    raise UserError(
        f"no weights are hosted for {config_path!r}; convert the public checkpoint with `sparse-detr convert IN OUT`"
    )


def get_config(config_path: str, trained: bool = False) -> Config:
    """Load a config of either kind.

    Args:
        trained: raise as `get_checkpoint_url` does, since no weights are hosted.
    """
    if trained:
        get_checkpoint_url(config_path)
    return load_config(get_config_file(config_path))


def get(
    config_path: str,
    trained: bool = False,
    device: str | None = None,
    weights: str | None = None,
    ema: bool = False,
) -> nn.Module:
    """Build a model, in training mode, as Detectron2 does.

    Args:
        trained: raise as `get_checkpoint_url` does, unless `weights` is given.
        device: the model's device; None takes the config's.
        weights: checkpoint to load; None loads nothing.
        ema: load the averaged weights of the checkpoint.

    Raises:
        UserError: there is no such config, or the checkpoint is of another model, has other classes, or has NaN.
    """
    if ema and weights is None or weights is not None and not str(weights).strip():
        raise UserError("no checkpoint is named; give weights=FILE")
    cfg = get_config(config_path, trained=trained and weights is None)
    model = build_detector(cfg, device=device)
    if weights is not None:
        load_weights(model, weights, skip_other_classes=False, ema=ema)
        check_finite_weights(model, weights)
    return model
