"""Check the settings of a config, lazy or yacs, before anything is built."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_detr.config.arguments import check_arguments, groups, is_ours
from sparse_detr.config.kinds import Config, kind_of
from sparse_detr.config.rules import (
    LAZY_EXCEPTIONS,
    LAZY_ONLY,
    MODEL_SETTINGS,
    TRAINING,
    YACS_ONLY,
    SettingRule,
    optional,
    whole,
)
from sparse_detr.errors import UserError


def check_settings(cfg: Config) -> None:
    """Refuse settings that no training, evaluation or model can use; missing settings are not reported.

    Raises:
        UserError: names the key and its value as on the command line, and the values that are allowed.
    """
    kind_of(cfg).choose(lazy=_check_lazy, yacs=_check_yacs)(cfg)


def _check_lazy(cfg: DictConfig) -> None:
    settings = _settings_in(cfg)
    rules = {key: rule for key, (_, rule) in TRAINING.items()} | LAZY_ONLY
    for key in sorted(rules, key=lambda key: key.count(".")):  # a group before its own settings
        _check_setting(settings, key, rules[key], "=")
    check_arguments(settings)
    model = settings.get("model", {})
    for key, group in groups(model, "model") if is_ours(model.get("_target_")) else ():
        if not f"{key}.".startswith("model.backbone."):  # its arguments have names of their own
            _check_model_group(key, group)


def _settings_in(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings as dicts and lists, with interpolations resolved."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}") from error


def _check_yacs(cfg: CfgNode) -> None:
    rules = {**YACS_ONLY, **{key: rule for key, rule in TRAINING.values() if key}}
    rules |= {f"MODEL.DETR.{name.upper()}": optional(rule) for name, rule in MODEL_SETTINGS.items()}
    for key, rule in rules.items():
        _check_setting(cfg, key, rule, " ")
    optimizer = cfg.SOLVER.get("OPTIMIZER", "ADAMW")
    if optimizer not in ("ADAMW", "SGD"):
        raise UserError(f"SOLVER.OPTIMIZER is {optimizer!r}; choose ADAMW or SGD")
    _check_registered(cfg)
    _check_detr_heads(cfg)
    _check_recipe(cfg)


def _check_setting(settings: dict[str, Any], key: str, rule: SettingRule, sign: str) -> None:
    """Refuse the value of a key unless the rule allows it or the key is missing; the error says key, `sign`, value."""
    *parents, name = key.split(".")
    group: Any = settings
    for parent in parents:
        group = group.get(parent) if isinstance(group, dict) else None
    if isinstance(group, dict) and name in group:
        _refuse_unless(rule, group[name], f"{key}{sign}")


def _refuse_unless(rule: SettingRule, value: Any, assignment: str) -> None:
    if rule.allows(value):
        return
    text = value if isinstance(value, str) and value else repr(value)
    text = text if len(text) <= 100 else f"{text[:100]}..."
    raise UserError(f"{assignment}{text} cannot be used; give {rule.words}")


def _check_detr_heads(cfg: CfgNode) -> None:
    """Refuse an embedding dimension that the number of heads does not divide; 256 and 8 where one is not set."""
    detr = cfg.MODEL.get("DETR", {})
    dim, heads = detr.get("EMBED_DIM") or 256, detr.get("NUM_HEADS") or 8
    if dim % heads:
        raise UserError(f"MODEL.DETR.EMBED_DIM {dim} cannot be used; give a multiple of MODEL.DETR.NUM_HEADS {heads}")


def _check_model_group(key: str, group: dict[str, Any]) -> None:
    """Check the settings of one part of a lazy model."""
    owner = key.rpartition(".")[2]
    for name in group:
        if name in MODEL_SETTINGS:
            less = owner in LAZY_EXCEPTIONS.get(name, ())
            _refuse_unless(whole(0) if less else MODEL_SETTINGS[name], group[name], f"{key}.{name}=")
    dim, heads = group.get("embed_dim"), group.get("num_heads")
    if None not in (dim, heads) and dim % heads:
        raise UserError(f"{key}.embed_dim={dim} cannot be used; give a multiple of {key}.num_heads={heads}")


def _check_registered(cfg: CfgNode) -> None:
    import sparse_detr.recipes  # noqa: F401 registers the names

    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        known = sorted(known for known, _ in registry)
        if name not in known:
            raise UserError(f"{key} {name} cannot be used; give one of {', '.join(known)}")


def _check_recipe(cfg: CfgNode) -> None:
    """Let the recipe check its arguments; any backbone will do for that."""
    from sparse_detr.recipes.backbones import resnet
    from sparse_detr.recipes.meta_arch import RECIPES, recipe_config

    if cfg.MODEL.META_ARCHITECTURE in RECIPES and "DETR" in cfg.MODEL:
        try:
            recipe_config(cfg.MODEL.META_ARCHITECTURE, cfg, resnet(50, num_maps=1))
        except (ValueError, TypeError) as error:
            raise error if isinstance(error, UserError) else UserError(f"MODEL.DETR: {error}") from error
