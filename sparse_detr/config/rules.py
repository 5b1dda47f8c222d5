"""Rules for the settings of a config: the values that each may have, by its lazy and its yacs key."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparse_detr.config.duration import WORDS, is_time

DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")


@dataclass(frozen=True)
class SettingRule:
    """The values that a setting may have: `allows` tests one, `words` describes them for a message."""

    words: str
    allows: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: int = 2**31 - 1) -> SettingRule:
    """Allow whole numbers from `low` to `high`."""
    return SettingRule(f"a whole number, {low} or more", lambda value: _is_whole(value) and low <= value <= high)


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> SettingRule:
    """Allow finite numbers from `low` to `high`; `above` and `below` leave out the ends."""

    def allows(value: Any) -> bool:
        return (
            _is_number(value)
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
        )

    lower = f"above {low}" if above else f"{low} or more"
    upper = "" if high == math.inf else f" and below {high}" if below else f" and at most {high}"
    return SettingRule(f"a number {lower}{upper}", allows)


def one_of(*choices: Any) -> SettingRule:
    """Allow the given values only."""
    return SettingRule(
        f"one of {', '.join(map(str, choices))}", lambda value: value in choices and not isinstance(value, bool)
    )


def listed(rule: SettingRule, length: int | None = None, *, filled: bool = True) -> SettingRule:
    """Allow lists whose values `rule` allows; empty ones unless `filled`."""

    def allows(value: Any) -> bool:
        is_list = isinstance(value, list | tuple)
        return is_list and length in (None, len(value)) and len(value) >= filled and all(map(rule.allows, value))

    count = "" if length is None else f"{length} values, each "
    return SettingRule(f"a list of {count}{rule.words}" if count else f"a list, each value {rule.words}", allows)


def optional(rule: SettingRule) -> SettingRule:
    """Allow None and what `rule` allows."""
    return SettingRule(f"{rule.words}, or null", lambda value: value is None or rule.allows(value))


def either(first: SettingRule, second: SettingRule) -> SettingRule:
    """Allow what one of two rules allows."""
    return SettingRule(f"{first.words}, or {second.words}", lambda value: first.allows(value) or second.allows(value))


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str | torch.device) and torch.device(value).type in DEVICES
    except RuntimeError:
        return False


FLAG = SettingRule("true or false", lambda value: isinstance(value, bool))
TEXT = SettingRule("a text", lambda value: isinstance(value, str) and "\0" not in value)
NAME = SettingRule("a text that is not empty", lambda value: TEXT.allows(value) and value.strip() != "")
DEVICE = SettingRule("cpu, cuda or cuda:N", _is_device)
SHARE = number(0, 1)
SOME_SHARE = number(0, 1, above=True)
POSITIVE = number(0, above=True)
BETWEEN = number(0, 1, above=True, below=True)
SOME = whole(1)
SEED = whole(-(2**31))
MAPPING = SettingRule("a group of settings", lambda value: isinstance(value, dict))
SCALING = one_of("none", "sqrt", "linear")
PRECISION = one_of("bf16", "fp16")
CHECKPOINTED = one_of("backbone", "encoder", "decoder")
TIME = SettingRule(WORDS, is_time)

TRAINING: dict[str, tuple[str | None, SettingRule]] = {
    # Lazy key: yacs key, rule. Settings of one kind of config only follow in LAZY_ONLY and YACS_ONLY.
    "train.output_dir": ("OUTPUT_DIR", NAME),
    "train.init_checkpoint": ("MODEL.WEIGHTS", optional(TEXT)),
    "train.max_iter": ("SOLVER.MAX_ITER", SOME),
    "train.device": ("MODEL.DEVICE", DEVICE),
    "train.seed": ("SEED", SEED),
    "train.amp.enabled": ("SOLVER.AMP.ENABLED", FLAG),
    "train.amp.dtype": ("SOLVER.AMP.DTYPE", PRECISION),
    "train.batch": ("SOLVER.BATCH", optional(one_of("auto"))),
    "train.accumulate": ("SOLVER.ACCUMULATE", SOME),
    "train.fast_backbone": ("SOLVER.FAST_BACKBONE", FLAG),
    "train.checkpoint_activations": ("SOLVER.CHECKPOINT_ACTIVATIONS", listed(CHECKPOINTED, filled=False)),
    "train.freeze": ("SOLVER.FREEZE", listed(NAME, filled=False)),
    "train.ema.enabled": ("SOLVER.EMA.ENABLED", FLAG),
    "train.ema.decay": ("SOLVER.EMA.DECAY", BETWEEN),
    "train.early_stopping.patience": ("SOLVER.EARLY_STOPPING.PATIENCE", whole(0)),
    "train.early_stopping.metric": ("SOLVER.EARLY_STOPPING.METRIC", optional(NAME)),
    "train.early_stopping.min_improvement": ("SOLVER.EARLY_STOPPING.MIN_IMPROVEMENT", number(0)),
    "train.writers": ("SOLVER.WRITERS", listed(one_of("wandb", "mlflow"), filled=False)),
    "train.max_time": ("SOLVER.MAX_TIME", optional(TIME)),
    "train.checkpointer.period": ("SOLVER.CHECKPOINT_PERIOD", SOME),
    "train.checkpointer.max_to_keep": ("SOLVER.MAX_TO_KEEP", optional(SOME)),
    "train.eval_period": ("TEST.EVAL_PERIOD", whole(0)),
    "train.validation_loss": ("TEST.VALIDATION_LOSS", optional(either(FLAG, SOME))),
    "train.vis_period": ("VIS_PERIOD", whole(0)),
    "train.best_metric": ("TEST.BEST_METRIC", NAME),
    "train.report": ("TEST.REPORT", FLAG),
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
    "dataloader.train.mapper.draft_short_side": ("INPUT.DRAFT_SHORT_SIDE", optional(SOME)),
    "dataloader.train.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TRAIN", SOME),
    "dataloader.train.mapper.augmentations.preset": (
        "INPUT.AUGMENTATION",
        optional(one_of("photos", "aerial", "industrial")),
    ),
    "dataloader.test.mapper.augmentations.short_size": ("INPUT.MIN_SIZE_TEST", SOME),
    "dataloader.test.mapper.augmentations.max_size": ("INPUT.MAX_SIZE_TEST", SOME),
}

LAZY_ONLY: dict[str, SettingRule] = {
    **dict.fromkeys(("model", "optimizer", "lr_multiplier", "dataloader", "train"), MAPPING),
    **dict.fromkeys(("train.amp", "train.ema", "train.ddp"), MAPPING),
    **dict.fromkeys(("dataloader.train", "dataloader.test", "dataloader.train.dataset"), MAPPING),
    **dict.fromkeys(("train.checkpointer", "train.early_stopping", "dataloader.test.dataset"), MAPPING),
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

YACS_ONLY: dict[str, SettingRule] = {
    "SOLVER.CLIP_GRAD_NORM": optional(number(0)),
    "SOLVER.LR_SCHEDULER_NAME": one_of("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.STEPS": listed(SOME, filled=False),
    "SOLVER.WARMUP_FACTOR": SHARE,
    "SOLVER.MOMENTUM": number(0),
    "DATASETS.TRAIN": listed(NAME, filled=False),
    "DATASETS.TEST": listed(NAME, filled=False),
    **{f"DATASETS.OWN.{key}": TEXT for key in ("TRAIN_JSON", "TRAIN_IMAGES", "VAL_JSON", "VAL_IMAGES")},
    "TEST.SUPPRESS_DUPLICATES": optional(BETWEEN),
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
    "MODEL.TIMM.NAME": optional(NAME),
    "MODEL.TIMM.NUM_MAPS": optional(SOME),
    "MODEL.TIMM.FROZEN_NORMS": optional(FLAG),
    "MODEL.TIMM.CHECKPOINT_PATH": optional(TEXT),
    "MODEL.SWIN.PRETRAINING": optional(one_of("imagenet", "imagenet22k", "imagenet22kto1k")),
    "MODEL.DAT.SIZE": optional(one_of("tiny", "small", "base")),
    "MODEL.DAT.IMAGE_SIZE": optional(one_of(224, 384)),
    "MODEL.DAT.NUM_MAPS": optional(whole(1, 4)),
    "MODEL.DAT.DROP_PATH_RATE": optional(number(0, 1, below=True)),
    "MODEL.DAT.CONVENTION": optional(one_of(2022, 2023, "2022", "2023")),
}

MODEL_SETTINGS: dict[str, SettingRule] = {
    # Arguments of the parts of a model, by name, in any part; the same names in capitals are keys of MODEL.DETR.
    **dict.fromkeys(("embed_dim", "num_heads", "num_levels", "num_points", "num_queries", "num_classes"), SOME),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "feedforward_dim", "num_detections", "num_objects"), SOME),
    **dict.fromkeys(("num_anchors", "count", "num_layers", "normalized_shape", "num_maps"), SOME),
    **dict.fromkeys(("num_sampling_queries", "mixing_dim"), SOME),
    **dict.fromkeys(("share_heads", "proposals_tied", "detach_content"), FLAG),
    **dict.fromkeys(("first_num_queries", "first_number", "last_number"), SOME),
    "falling_steps": optional(SOME),
    **dict.fromkeys(("high_levels", "blocks"), SOME),
    **dict.fromkeys(("num_patterns", "denoising_queries", "size_divisibility", "freeze_at"), whole(0)),
    **dict.fromkeys(("box_refinement", "shared_heads", "encoder_auxiliary_loss", "freeze_centers"), FLAG),
    **dict.fromkeys(("class_agnostic", "tied", "supervise_surplus_rows", "narrow_ffn"), FLAG),
    **dict.fromkeys(("dropout", "label_noise", "drop_path_rate"), SHARE),
    **dict.fromkeys(("box_noise", "weight", "class_weight", "iou_eps", "logit_eps"), number(0)),
    **dict.fromkeys(("bbox_weight", "giou_weight", "class_cost", "bbox_cost", "giou_cost"), number(0)),
    **dict.fromkeys(("position_temperature",), POSITIVE),
    "position_offset": number(-math.inf),
    **dict.fromkeys(("keep_ratio", "sampling_share"), SOME_SHARE),
    "inference_keep_ratio": optional(SOME_SHARE),
    "level_shares": optional(listed(SOME_SHARE)),
    "training_keep_ratios": optional(listed(SOME_SHARE, 2)),
    "training_level_shares": optional(listed(listed(SOME_SHARE, 2))),
    **dict.fromkeys(("training_decoder_layers", "training_num_queries"), optional(listed(SOME, 2))),
    "distillation_weight": optional(number(0)),
    "suppress_duplicates": optional(BETWEEN),
    "min_score": SHARE,
    **dict.fromkeys(("min_keep_ratio", "max_keep_ratio"), SOME_SHARE),
    "num_pooled": SOME,
    "class_channels": optional(listed(whole(0))),
    "pixel_mean": listed(number(-math.inf)),
    "pixel_std": listed(POSITIVE),
    "behavior": one_of("exact", "released"),
    "origin": one_of("official", "detrex"),
    "box_start": one_of("reference", "anywhere"),
    "no_object_weight": POSITIVE,
}
# Settings of MODEL_SETTINGS that may be 0 in these parts of a lazy model.
LAZY_EXCEPTIONS = {"num_queries": ("denoising",), "encoder_layers": ("heads",)}
