"""Names of removed configs, and what replaces each: the yaml of its meta-architecture, with overrides."""

from pathlib import Path


def _epochs(length: int, drop: int, iterations: int) -> str:
    return f"SOLVER.MAX_ITER {length * iterations} SOLVER.STEPS ({drop * iterations},)"


def _detrex_keys(architecture: str, *keys: str, epochs: str = _epochs(12, 11, 7500)) -> str:
    return " ".join((f"MODEL.META_ARCHITECTURE {architecture}", *keys, epochs))


def _swin(size: str, *keys: str) -> str:
    return " ".join(("MODEL.BACKBONE.NAME build_swin_backbone MODEL.BACKBONE.FREEZE_AT 0 MODEL.SWIN.SIZE", size, *keys))


def _dat(size: str, *keys: str) -> str:
    return " ".join(("MODEL.BACKBONE.NAME build_dat_backbone MODEL.BACKBONE.FREEZE_AT 0 MODEL.DAT.SIZE", size, *keys))


_R101 = "MODEL.RESNETS.DEPTH 101"
_DC5 = "MODEL.BACKBONE.NAME build_resnet_dc5_backbone"
_NOT_DILATED = "MODEL.BACKBONE.NAME build_resnet_backbone"
_SWIN_TINY = "MODEL.BACKBONE.NAME build_swin_tiny_backbone"
_384 = "MODEL.SWIN.IMAGE_SIZE 384"
_22K_TO_1K = "MODEL.SWIN.PRETRAINING imagenet22kto1k"
_C5 = "MODEL.RESNETS.OUT_FEATURES ['res5']"
_FIVE_LEVELS = "MODEL.DETR.NUM_LEVELS 5"
_C2_TO_C5 = f"MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] {_FIVE_LEVELS}"
_SWIN_5_LEVELS = f"MODEL.SWIN.NUM_MAPS 4 {_FIVE_LEVELS}"
_POSITION = "MODEL.DETR.POSITION_TEMPERATURE 10000 MODEL.DETR.POSITION_OFFSET -0.5"
_UNIFORM = "MODEL.DETR.ANCHOR_START uniform_centers"
_TOPK = "MODEL.DETR.BOX_REFINEMENT True MODEL.DETR.TWO_STAGE memory"
_SIX_LAYERS_300_QUERIES = "MODEL.DETR.ENCODER_LAYERS 6 MODEL.DETR.NUM_QUERIES 300"
_36_OF_7500 = _epochs(36, 30, 7500)
_50_OF_7500 = _epochs(50, 40, 7500)
_ONE_IMAGE_A_GPU = "SOLVER.IMS_PER_BATCH 8 TEST.EVAL_PERIOD 14786 SOLVER.CHECKPOINT_PERIOD 14786"
_DC5_500_EPOCHS = f"{_DC5} {_ONE_IMAGE_A_GPU} {_epochs(500, 400, 14786)}"
_DC5_300_EPOCHS = f"{_DC5} {_ONE_IMAGE_A_GPU} {_epochs(300, 200, 14786)}"
_DC5_50_EPOCHS = f"{_DC5} {_ONE_IMAGE_A_GPU} {_epochs(50, 40, 14786)}"
_300_OF_1848 = f"SOLVER.IMS_PER_BATCH 64 SOLVER.CLIP_GRAD_NORM 0 {_epochs(300, 200, 1848)}"
_HALF_POLLED = "MODEL.DETR.KEEP_RATIO 0.5 MODEL.DETR.TRAINING_KEEP_RATIOS (0.5,0.5)"

_RENAMED = {
    "efficient_detr_r50": "deformable_detr_topk_r50",
    "efficient_detr_swin_t": "deformable_detr_topk_swin_t",
}

# The yaml to start from -> the name of a lazy config -> the overrides that make the yaml equal to it.
_ROWS: dict[str, dict[str, str]] = {
    "projects/SparseDETR/configs/sparse_detr_r50_rho30.yaml": {
        **{f"sparse_detr_r50_rho{rho}0": f"MODEL.DETR.KEEP_RATIO 0.{rho}" for rho in (1, 2, 4, 5)},
        "sparse_detr_dat_t_rho30": _dat("tiny"),
        **{f"sparse_detr_swin_t_rho{rho}0": f"{_SWIN_TINY} MODEL.DETR.KEEP_RATIO 0.{rho}" for rho in (1, 2, 3, 4, 5)},
    },
    "configs/Base-DETR.yaml": {
        "deformable_detr_swin_t": _SWIN_TINY,
        "deformable_detr_dat_t": _dat("tiny"),
        "deformable_detr_topk_r50": _TOPK,
        "deformable_detr_topk_swin_t": f"{_SWIN_TINY} {_TOPK}",
    },
    "projects/DeformableDETR/configs/deformable_detr_r50.yaml": {
        "deformable_detr_r50_refine": "MODEL.DETR.BOX_REFINEMENT True",
        "deformable_detr_r50_single_scale": f"{_C5} MODEL.DETR.NUM_LEVELS 1",
        "deformable_detr_r50_single_scale_dc5": f"{_DC5} MODEL.DETR.NUM_LEVELS 1",
        "deformable_detr_r50_two_stage": "MODEL.DETR.BOX_REFINEMENT True MODEL.DETR.TWO_STAGE projected",
    },
    "projects/DETR/configs/detr_r50.yaml": {
        "detr_r50_300ep": _epochs(300, 200, 7393),
        "detr_r50_50ep": _epochs(50, 40, 7393),
        "detr_r50_dc5": _DC5_500_EPOCHS,
        "detr_r101": _R101,
        "detr_r101_50ep": f"{_R101} {_epochs(50, 40, 7393)}",
        "detr_r101_dc5": f"{_DC5_500_EPOCHS} {_R101}",
    },
    "projects/ConditionalDETR/configs/conditional_detr_r50.yaml": {
        "conditional_detr_r50_dc5": _DC5_50_EPOCHS,
        "conditional_detr_r101": _R101,
        "conditional_detr_r101_dc5": f"{_DC5_50_EPOCHS} {_R101}",
    },
    "projects/PnPDETR/configs/pnp_detr_r50.yaml": {
        "pnp_detr_r50_500ep": _epochs(500, 400, 7393),
        "pnp_detr_r50_dc5": _DC5_300_EPOCHS,
        "pnp_detr_r101": _R101,
        "pnp_detr_r101_dc5": f"{_DC5_300_EPOCHS} {_R101}",
    },
    "projects/DABDETR/configs/dab_detr_r50.yaml": {
        "dab_detr_r101_dc5": f"{_DC5} {_R101}",
        "dab_detr_r50_3patterns": "MODEL.DETR.NUM_PATTERNS 3",
        "dab_detr_r50_dc5": _DC5,
        "dab_detr_r50_dc5_3patterns": f"{_DC5} MODEL.DETR.NUM_PATTERNS 3",
        "dab_detr_r50_dc5_fixed_centers": f"{_DC5} {_UNIFORM} MODEL.DETR.FREEZE_CENTERS True",
    },
    "projects/EfficientDETR/configs/efficient_detr_r50.yaml": {
        "efficient_detr_r101": _R101,
        "efficient_detr_r101_300queries": f"{_R101} {_SIX_LAYERS_300_QUERIES}",
        "efficient_detr_r50_300queries": _SIX_LAYERS_300_QUERIES,
    },
    "projects/AnchorDETR/configs/anchor_detr_r50_dc5.yaml": {
        "anchor_detr_r50": _NOT_DILATED,
        "anchor_detr_r101": f"{_NOT_DILATED} {_R101}",
        "anchor_detr_r101_dc5": _R101,
    },
    "projects/DINO/configs/dino_r50_4scale_12ep.yaml": {
        "dino_r50_4scale_24ep": _epochs(24, 20, 7393),
        "dino_r50_4scale_36ep": _epochs(36, 30, 7393),
        "dino_r50_5scale_12ep": _C2_TO_C5,
        "dino_r50_5scale_24ep": f"{_C2_TO_C5} {_epochs(24, 20, 7393)}",
        "dino_r50_5scale_36ep": f"{_C2_TO_C5} {_epochs(36, 30, 7393)}",
        "dino_dat_t_12ep": _dat("tiny"),
        "dino_dat_s_12ep": _dat("small"),
        "dino_dat_b_384_12ep": _dat("base", "MODEL.DAT.IMAGE_SIZE 384"),
        "dino_swin_l_384_4scale_12ep": _swin("large", _384),
        "dino_swin_l_384_4scale_36ep": _swin("large", _384, _epochs(36, 30, 7393)),
        "dino_swin_l_384_5scale_12ep": _swin("large", _384, _SWIN_5_LEVELS),
        "dino_swin_l_384_5scale_36ep": _swin("large", _384, _SWIN_5_LEVELS, _epochs(36, 30, 7393)),
    },
    "projects/LiteDETR/configs/lite_dino_r50_h3l1_x3.yaml": {
        "lite_dino_r50_h2l2_x3": "MODEL.DETR.HIGH_LEVELS 2",
        "lite_dino_r50_h3l1_x1": "MODEL.DETR.BLOCKS 1",
    },
    "projects/FocusDETR/configs/focus_detr_r50_36ep.yaml": {
        "focus_detr_r50_12ep": f"{_POSITION} {_epochs(12, 11, 7500)}",
        "focus_detr_r50_24ep": _epochs(24, 20, 7500),
        "focus_detr_r101_12ep": f"{_R101} {_POSITION} {_epochs(12, 11, 7500)}",
        "focus_detr_r101_24ep": f"{_R101} {_epochs(24, 20, 7500)}",
        "focus_detr_r101_36ep": _R101,
        "focus_detr_dat_t_12ep": _dat("tiny", _POSITION, _epochs(12, 11, 7500)),
        "focus_detr_swin_t_224_12ep": _swin("tiny", _POSITION, _epochs(12, 11, 7500)),
        "focus_detr_swin_t_224_24ep": _swin("tiny", _POSITION, _epochs(24, 20, 7500)),
        "focus_detr_swin_t_224_36ep": _swin("tiny", _POSITION, _36_OF_7500),
        "focus_detr_swin_t_224_22k_12ep": _swin("tiny", _22K_TO_1K, _POSITION, _epochs(12, 11, 7500)),
        "focus_detr_swin_t_224_22k_36ep": _swin("tiny", _22K_TO_1K, _POSITION, _36_OF_7500),
        "focus_detr_swin_b_384_36ep": _swin("base", _384, _POSITION, _36_OF_7500),
        "focus_detr_swin_l_384_36ep": _swin("large", _384, _POSITION, _36_OF_7500),
    },
    "configs/Base-Detrex.yaml": {
        "anchor_detr_detrex_r50": _detrex_keys("AnchorDETR", _C5, "MODEL.BACKBONE.FREEZE_AT 2", epochs=_50_OF_7500),
        "dab_deformable_detr_detrex_r50": _detrex_keys("DABDeformableDETR", epochs=_50_OF_7500),
        "dab_deformable_detr_detrex_r50_two_stage": _detrex_keys(
            "DABDeformableDETR", "MODEL.DETR.TWO_STAGE True", epochs=_50_OF_7500
        ),
        "conditional_detr_detrex_r50": _detrex_keys(
            "ConditionalDETR", _C5, "MODEL.DETR.NUM_DETECTIONS 300", epochs=_50_OF_7500
        ),
        "dab_detr_detrex_r50": _detrex_keys("DABDETR", _C5, _UNIFORM, epochs=_50_OF_7500),
        "dab_detr_detrex_r101": _detrex_keys("DABDETR", _R101, _C5, _UNIFORM, epochs=_50_OF_7500),
        "dab_detr_detrex_swin_t": _detrex_keys(
            "DABDETR", _swin("tiny", "MODEL.SWIN.NUM_MAPS 1"), _UNIFORM, epochs=_50_OF_7500
        ),
        "pnp_detr_detrex_r50": _detrex_keys("PnPDETR", _C5, _HALF_POLLED, epochs=_300_OF_1848),
        "pnp_detr_detrex_r101": _detrex_keys("PnPDETR", _R101, _C5, _HALF_POLLED, epochs=_300_OF_1848),
        "dino_detrex_r50_4scale_12ep": _detrex_keys("DINO", _POSITION),
        "dino_detrex_r50_4scale_12ep_300dn": _detrex_keys("DINO", _POSITION, "MODEL.DETR.DENOISING_QUERIES 300"),
        "dino_detrex_r50_4scale_12ep_amp": _detrex_keys(
            "DINO", _POSITION, "SOLVER.AMP.ENABLED True SOLVER.AMP.DTYPE fp16"
        ),
        "dino_detrex_r50_4scale_12ep_ema": _detrex_keys(
            "DINO", _POSITION, "SOLVER.EMA.ENABLED True SOLVER.EMA.DECAY 0.999"
        ),
        "dino_detrex_r50_4scale_12ep_slow_sampling": _detrex_keys(
            *("DINO", _POSITION, "SOLVER.BASE_LR 0.0002 SOLVER.SAMPLING_MULTIPLIER 0.1"),
            "SOLVER.NORM_WEIGHT_DECAY 0.0001",
        ),
        "dino_detrex_r50_4scale_24ep": _detrex_keys(
            "DINO", "DATALOADER.FILTER_EMPTY_ANNOTATIONS False", epochs=_epochs(24, 20, 7500)
        ),
        "dino_detrex_r50_5scale_12ep": _detrex_keys("DINO", _C2_TO_C5, _POSITION),
        "dino_detrex_r101_4scale_12ep": _detrex_keys("DINO", _R101, _POSITION),
        "dino_detrex_swin_t_224_4scale_12ep": _detrex_keys("DINO", _swin("tiny"), _POSITION),
        "dino_detrex_swin_t_224_22k_4scale_12ep": _detrex_keys("DINO", _swin("tiny", _22K_TO_1K), _POSITION),
        "dino_detrex_swin_s_224_4scale_12ep": _detrex_keys("DINO", _swin("small"), _POSITION),
        "dino_detrex_swin_s_224_22k_4scale_12ep": _detrex_keys("DINO", _swin("small", _22K_TO_1K), _POSITION),
        "dino_detrex_swin_b_384_4scale_12ep": _detrex_keys("DINO", _swin("base", _384, _22K_TO_1K), _POSITION),
        "dino_detrex_swin_l_224_4scale_12ep": _detrex_keys("DINO", _swin("large", _22K_TO_1K), _POSITION),
        "dino_detrex_swin_l_384_4scale_12ep": _detrex_keys("DINO", _swin("large", _384, _22K_TO_1K), _POSITION),
        "dino_detrex_swin_l_384_4scale_36ep": _detrex_keys(
            "DINO", _swin("large", _384, _22K_TO_1K), _POSITION, epochs=_36_OF_7500
        ),
        "dino_detrex_swin_l_384_5scale_12ep": _detrex_keys(
            "DINO", _swin("large", _384, _22K_TO_1K, _SWIN_5_LEVELS), _POSITION
        ),
        "dino_detrex_swin_l_384_5scale_36ep": _detrex_keys(
            "DINO", _swin("large", _384, _22K_TO_1K, _SWIN_5_LEVELS), _POSITION, epochs=_36_OF_7500
        ),
    },
}

YAML_ROWS = {
    name: (start, (*overrides.split(), "OUTPUT_DIR", f"output/{name}"))
    for start, rows in _ROWS.items()
    for name, overrides in rows.items()
}
"""Name of a lazy config -> the yaml to start from, and the overrides for it: "PATH.KEY" and value in turn."""


def successor_of(path: str) -> str | None:
    """Return an error's text that says what replaces a removed config file; None if the file was never there."""
    name = _RENAMED.get(Path(path).stem, Path(path).stem)
    lazy = Path(path).parent / f"{name}.py"
    if Path(path).suffix == ".yaml" and name in YAML_ROWS:
        start, overrides = YAML_ROWS[name]
        return f"{path} is gone; use {start} with {' '.join(map(_shell_quoted, overrides))}, or the lazy config {lazy}"
    return f"{path} is now {lazy}" if Path(path).suffix == ".py" and name != Path(path).stem else None


def _shell_quoted(word: str) -> str:
    """Return a word quoted for a shell, if it needs quotes."""
    return f'"{word}"' if set(word) & set("()[]'") else word
