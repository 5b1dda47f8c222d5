"""Read off a config what it does with data, and write changes in its own style."""

from __future__ import annotations

from typing import Any

from detectron2.data import transforms as T

from sparse_detr.config.kinds import YACS_KEYS, Config, kind_of
from sparse_detr.config.limits import chosen_limit, limits_of
from sparse_detr.config.model import build_detector, build_train_mapper
from sparse_detr.data.plan import Change, Plan, Resize

# Settings that each kind of config has in its own form, so that `YACS_KEYS` does not list them.
_YACS_OVERRIDES = {
    "model.queries.num_queries": "MODEL.DETR.NUM_QUERIES {}",
    "model.selector.budget.keep_ratio": "MODEL.DETR.KEEP_RATIO {}",
    "dataloader.train.mapper.augmentations.crop_range": "INPUT.CROP.ENABLED False",
    "dataloader.train.mapper.augmentations.short_sizes": "INPUT.MIN_SIZE_TRAIN {}",
}


def plan_of(cfg: Config) -> Plan:
    """Return the numbers of a config that data must fit to; the model is built, without its weights.

    Raises:
        UserError: the model or the preprocessing cannot be built.
    """
    limits, model = limits_of(cfg), build_detector(cfg, device="cpu")
    augmentations = getattr(build_train_mapper(cfg), "augmentations", None)
    parts = list(_parts(augmentations))
    tokenizer = getattr(model, "tokenizer", None)
    strides = getattr(tokenizer, "strides", None) or (getattr(tokenizer, "stride", None),)
    return Plan(
        num_queries=limits.num_queries,
        num_detections=limits.num_detections,
        evaluation_limit=chosen_limit(cfg),
        value_range=kind_of(cfg).get("dataloader.train.mapper.value_range"),
        resize=_resize(parts),
        short_sizes=_short_sizes(parts),
        strides=tuple(int(stride) for stride in strides if stride),
        keep_ratio=getattr(getattr(model, "selector", None), "keep_ratio", None),
        crops=any(isinstance(part, T.RandomCrop) for part in parts),
    )


def _parts(augmentation: Any) -> list[Any]:
    """Return the parts of an augmentation that is made of others, in order, and itself."""
    inner = list(getattr(augmentation, "augs", None) or ())
    if (only := getattr(augmentation, "aug", None)) is not None:
        inner.append(only)
    return [augmentation, *(part for one in inner for part in _parts(one))]


def _last_resize(parts: list[Any]) -> Any:
    """Return the last resize, which all images pass; None if there is none."""
    return next((part for part in reversed(parts) if isinstance(part, T.ResizeShortestEdge)), None)


def _short_sizes(parts: list[Any]) -> tuple[int, ...]:
    last = _last_resize(parts)
    return () if last is None else tuple(sorted(int(length) for length in last.short_edge_length))


def _resize(parts: list[Any]) -> Resize | None:
    """Return the last resize with the middle of its short sides."""
    lengths = _short_sizes(parts)
    return Resize(lengths[len(lengths) // 2], int(_last_resize(parts).max_size)) if lengths else None


def override_of(cfg: Config, change: Change) -> str | None:
    """Return the change as an override of the command line; None if it is no setting of this config."""
    return kind_of(cfg).choose(lazy=_lazy_override, yacs=_yacs_override)(cfg, change)


def _lazy_override(cfg: Config, change: Change) -> str | None:
    group = change.key.rpartition(".")[0]
    if not change.key or kind_of(cfg).get(group) is None:
        return None
    return kind_of(cfg).assignment(change.key, "null" if change.value is None else _listed(change.value))


def _listed(value: object) -> object:
    """Return a list as text without spaces, which a shell would take apart; any other value as it is."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else value


def _yacs_override(cfg: Config, change: Change) -> str | None:
    if change.key in _YACS_OVERRIDES:
        return _YACS_OVERRIDES[change.key].format(_listed(change.value))
    return kind_of(cfg).assignment(change.key, change.value) if change.key in YACS_KEYS else None
