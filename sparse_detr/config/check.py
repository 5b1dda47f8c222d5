"""Check the settings of a config of either kind before anything is built."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparse_detr.config.arguments import check_arguments, groups, is_ours
from sparse_detr.errors import UserError

Config = CfgNode | DictConfig
DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")


@dataclass(frozen=True)
class Kind:
    """What a setting may be: `allows` tells a good value, `words` say it to a person."""

    words: str
    allows: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: int = 2**31 - 1) -> Kind:
    """A whole number from `low` on."""
    return Kind(f"a whole number, {low} or more", lambda value: _is_whole(value) and low <= value <= high)


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Kind:
    """A finite number; `above` and `below` leave the ends out."""

    def allows(value: Any) -> bool:
        return (
            _is_number(value)
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
        )

    lower = f"above {low}" if above else f"{low} or more"
    upper = "" if high == math.inf else f" and below {high}" if below else f" and at most {high}"
    return Kind(f"a number {lower}{upper}", allows)


def one_of(*choices: Any) -> Kind:
    """One of a few values."""
    return Kind(
        f"one of {', '.join(map(str, choices))}", lambda value: value in choices and not isinstance(value, bool)
    )


def listed(kind: Kind, length: int | None = None, *, filled: bool = True) -> Kind:
    """A list of values of a kind."""

    def allows(value: Any) -> bool:
        is_list = isinstance(value, list | tuple)
        return is_list and length in (None, len(value)) and len(value) >= filled and all(map(kind.allows, value))

    count = "" if length is None else f"{length} values, each "
    return Kind(f"a list of {count}{kind.words}" if count else f"a list, each value {kind.words}", allows)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or none."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.allows(value))


def either(first: Kind, second: Kind) -> Kind:
    """A value of one of two kinds."""
    return Kind(f"{first.words}, or {second.words}", lambda value: first.allows(value) or second.allows(value))


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str | torch.device) and torch.device(value).type in DEVICES
    except RuntimeError:
        return False


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str) and "\0" not in value)
NAME = Kind("a text that is not empty", lambda value: TEXT.allows(value) and value.strip() != "")
DEVICE = Kind("cpu, cuda or cuda:N", _is_device)
SHARE = number(0, 1)
SOME_SHARE = number(0, 1, above=True)
POSITIVE = number(0, above=True)
BETWEEN = number(0, 1, above=True, below=True)
SOME = whole(1)
SEED = whole(-(2**31))
MAPPING = Kind("a group of settings", lambda value: isinstance(value, dict))
SCALING = one_of("none", "sqrt", "linear")
PRECISION = one_of("bf16", "fp16")

TRAINING: dict[str, tuple[str | None, Kind]] = {
    # Lazy key: yacs key, kind. What stands in one of them only is below.
    "train.output_dir": ("OUTPUT_DIR", NAME),
    "train.init_checkpoint": ("MODEL.WEIGHTS", optional(TEXT)),
    "train.max_iter": ("SOLVER.MAX_ITER", SOME),
    "train.device": ("MODEL.DEVICE", DEVICE),
    "train.seed": ("SEED", SEED),
    "train.amp.enabled": ("SOLVER.AMP.ENABLED", FLAG),
    "train.amp.dtype": ("SOLVER.AMP.DTYPE", PRECISION),
    "train.accumulate": ("SOLVER.ACCUMULATE", SOME),
    "train.ema.enabled": ("SOLVER.EMA.ENABLED", FLAG),
    "train.ema.decay": ("SOLVER.EMA.DECAY", BETWEEN),
    "train.checkpointer.period": ("SOLVER.CHECKPOINT_PERIOD", SOME),
    "train.checkpointer.max_to_keep": ("SOLVER.MAX_TO_KEEP", optional(SOME)),
    "train.eval_period": ("TEST.EVAL_PERIOD", whole(0)),
    "train.best_metric": ("TEST.BEST_METRIC", NAME),
    "optimizer.lr": ("SOLVER.BASE_LR", POSITIVE),
    "optimizer.weight_decay": ("SOLVER.WEIGHT_DECAY", number(0)),
    "optimizer.params.norm_weight_decay": ("SOLVER.NORM_WEIGHT_DECAY", optional(number(0))),
    "optimizer.params.backbone_multiplier": ("SOLVER.BACKBONE_MULTIPLIER", number(0)),
    "optimizer.params.sampling_multiplier": ("SOLVER.SAMPLING_MULTIPLIER", number(0)),
    "optimizer.params.batch_size_scaling": ("SOLVER.BATCH_SIZE_SCALING", SCALING),
    "lr_multiplier.gamma": ("SOLVER.GAMMA", POSITIVE),
    "lr_multiplier.warmup_iters": ("SOLVER.WARMUP_ITERS", whole(0)),
    "dataloader.train.total_batch_size": ("SOLVER.IMS_PER_BATCH", SOME),
    "dataloader.train.num_workers": ("DATALOADER.NUM_WORKERS", whole(0)),
    "dataloader.train.max_bad_share": ("DATALOADER.MAX_BAD_SHARE", SHARE),
    "dataloader.train.aspect_ratio_grouping": ("DATALOADER.ASPECT_RATIO_GROUPING", FLAG),
    "dataloader.train.dataset.filter_empty": ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", FLAG),
    "dataloader.evaluator.max_dets_per_image": ("TEST.DETECTIONS_PER_IMAGE", optional(SOME)),
    "dataloader.train.mapper.image_format": ("INPUT.FORMAT", one_of("RGB", "BGR")),
    "dataloader.train.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TRAIN", SOME),
    "dataloader.test.mapper.augmentations.short_size": ("INPUT.MIN_SIZE_TEST", SOME),
    "dataloader.test.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TEST", SOME),
}

LAZY_ONLY: dict[str, Kind] = {
    **dict.fromkeys(("model", "optimizer", "lr_multiplier", "dataloader", "train"), MAPPING),
    **dict.fromkeys(("train.amp", "train.ema", "train.ddp"), MAPPING),
    **dict.fromkeys(("dataloader.train", "dataloader.test", "dataloader.train.dataset"), MAPPING),
    **dict.fromkeys(("train.checkpointer", "dataloader.test.dataset"), MAPPING),
    "train.own_data": optional(MAPPING),
    **{f"train.own_data.{key}": optional(TEXT) for key in ("train_json", "train_images", "val_json", "val_images")},
    "train.clip_grad_norm": optional(POSITIVE),
    "train.log_period": SOME,
    "train.ddp.broadcast_buffers": FLAG,
    "train.ddp.find_unused_parameters": FLAG,
    "train.ddp.fp16_compression": FLAG,
    "optimizer.betas": listed(number(0, 1, below=True), 2),
    "optimizer.eps": number(0),
    "lr_multiplier.drop_at": listed(SOME_SHARE, filled=False),
    "lr_multiplier.end_factor": number(0),
    "lr_multiplier.max_iter": SOME,
    "dataloader.train.seed": SEED,
    "dataloader.train.dataset.names": either(NAME, listed(NAME)),
    "dataloader.test.dataset.names": either(NAME, listed(NAME)),
    "dataloader.test.batch_size": SOME,
    "dataloader.test.num_workers": whole(0),
    "dataloader.train.mapper.augmentations.short_sizes": listed(SOME),
    "dataloader.train.mapper.augmentations.crop_short_sizes": listed(SOME),
    "dataloader.train.mapper.augmentations.crop_range": optional(listed(SOME, 2)),
    "dataloader.train.mapper.augmentations.color_jitter": number(0, 1, below=True),
}

YACS_ONLY: dict[str, Kind] = {
    "SOLVER.CLIP_GRAD_NORM": optional(number(0)),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.STEPS": listed(SOME, filled=False),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.MOMENTUM": number(0),
    "DATASETS.TRAIN": listed(NAME, filled=False),
    "DATASETS.TEST": listed(NAME, filled=False),
    **{f"DATASETS.OWN.{key}": TEXT for key in ("TRAIN_JSON", "TRAIN_IMAGES", "VAL_JSON", "VAL_IMAGES")},
    "INPUT.MIN_SIZE_TRAIN": listed(SOME),
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical", "both"),
    "INPUT.CROP.ENABLED": FLAG,
    "INPUT.CROP.SIZE": listed(POSITIVE, 2),
    "MODEL.BACKBONE.FREEZE_AT": whole(0),
    "MODEL.PIXEL_MEAN": listed(number(-math.inf), 3),
    "MODEL.PIXEL_STD": listed(POSITIVE, 3),
    "MODEL.SWIN.SIZE": optional(one_of("tiny", "small", "base", "large")),
    "MODEL.SWIN.IMAGE_SIZE": optional(one_of(224, 384)),
    "MODEL.SWIN.NUM_MAPS": optional(whole(1, 4)),
    "MODEL.SWIN.DROP_PATH_RATE": optional(number(0, 1, below=True)),
    "MODEL.SWIN.PRETRAINING": optional(one_of("imagenet", "imagenet22k", "imagenet22kto1k")),
}

MODEL_SETTINGS: dict[str, Kind] = {
    # Arguments of the parts of a model by name, wherever they stand; the same names are keys of MODEL.DETR.
    **dict.fromkeys(("embed_dim", "num_heads", "num_levels", "num_points", "num_queries", "num_classes"), SOME),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "feedforward_dim", "num_detections", "num_objects"), SOME),
    **dict.fromkeys(("num_anchors", "count", "num_layers", "normalized_shape", "num_maps"), SOME),
    **dict.fromkeys(("num_patterns", "denoising_queries", "size_divisibility", "freeze_at"), whole(0)),
    **dict.fromkeys(("box_refinement", "shared_heads", "encoder_auxiliary_loss", "freeze_centers"), FLAG),
    **dict.fromkeys(("class_agnostic", "tied", "supervise_surplus_rows"), FLAG),
    **dict.fromkeys(("dropout", "label_noise", "drop_path_rate"), SHARE),
    **dict.fromkeys(("box_noise", "weight", "class_weight", "iou_eps", "logit_eps"), number(0)),
    **dict.fromkeys(("bbox_weight", "giou_weight", "class_cost", "bbox_cost", "giou_cost"), number(0)),
    **dict.fromkeys(("position_temperature",), POSITIVE),
    "position_offset": number(-math.inf),
    "keep_ratio": SOME_SHARE,
    "inference_keep_ratio": optional(SOME_SHARE),
    "class_channels": optional(listed(whole(0))),
    "pixel_mean": listed(number(-math.inf)),
    "pixel_std": listed(POSITIVE),
    "behavior": one_of("exact", "released"),
}
# Parts of a lazy model that use such a name for what may be 0.
LAZY_EXCEPTIONS = {"num_queries": ("denoising",), "encoder_layers": ("heads",)}


def check_settings(cfg: Config) -> None:
    """Refuse settings that no training, evaluation or model can use; what is missing is not looked for.

    Raises:
        UserError: names the key and its value as a person would write them, and says what may stand there.
    """
    _check_yacs(cfg) if isinstance(cfg, CfgNode) else _check_lazy(cfg)


def _check_lazy(cfg: DictConfig) -> None:
    settings = _plain(cfg)
    kinds = {key: kind for key, (_, kind) in TRAINING.items()} | LAZY_ONLY
    for key in sorted(kinds, key=lambda key: key.count(".")):  # a group before what is in it
        _check(settings, key, kinds[key], "=")
    check_arguments(settings)
    model = settings.get("model", {})
    for key, group in groups(model, "model") if is_ours(model.get("_target_")) else ():
        if not f"{key}.".startswith("model.backbone."):  # its arguments have names of their own
            _check_model_group(key, group)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The settings as dicts and lists, with what interpolations stand for."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'the config'}: {str(error).splitlines()[0]}") from error


def _check_yacs(cfg: CfgNode) -> None:
    kinds = {**YACS_ONLY, **{key: kind for key, kind in TRAINING.values() if key}}
    kinds |= {f"MODEL.DETR.{name.upper()}": optional(kind) for name, kind in MODEL_SETTINGS.items()}
    for key, kind in kinds.items():
        _check(cfg, key, kind, " ")
    optimizer = cfg.SOLVER.get("OPTIMIZER", "ADAMW")
    if optimizer not in ("ADAMW", "SGD"):
        raise UserError(f"SOLVER.OPTIMIZER is {optimizer!r}; choose ADAMW or SGD")
    _check_registered(cfg)
    _check_detr_heads(cfg)
    _check_recipe(cfg)


def _check(settings: dict[str, Any], key: str, kind: Kind, sign: str) -> None:
    """Refuse what stands at a key, if anything does, unless it is of the kind; `sign` stands between key and value."""
    *parents, name = key.split(".")
    group: Any = settings
    for parent in parents:
        group = group.get(parent) if isinstance(group, dict) else None
    if isinstance(group, dict) and name in group:
        _refuse_unless(kind, group[name], f"{key}{sign}")


def _refuse_unless(kind: Kind, value: Any, assignment: str) -> None:
    if kind.allows(value):
        return
    text = value if isinstance(value, str) and value else repr(value)
    text = text if len(text) <= 100 else f"{text[:100]}..."
    raise UserError(f"{assignment}{text} cannot be used; give {kind.words}")


def _check_detr_heads(cfg: CfgNode) -> None:
    """Refuse channels that the heads of an attention cannot share out, where the config says both or one of them."""
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
    """Let the recipe refuse its arguments; which backbone it gets does not matter."""
    from sparse_detr.recipes.backbones import resnet
    from sparse_detr.recipes.meta_arch import RECIPES, recipe_config

    if cfg.MODEL.META_ARCHITECTURE in RECIPES and "DETR" in cfg.MODEL:
        try:
            recipe_config(cfg.MODEL.META_ARCHITECTURE, cfg, resnet(50, num_maps=1))
        except (ValueError, TypeError) as error:
            raise error if isinstance(error, UserError) else UserError(f"MODEL.DETR: {error}") from error
