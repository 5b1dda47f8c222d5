"""The yacs keys that this project adds to Detectron2's.

Keys under `MODEL.DETR` are the keyword arguments of the recipes, in capitals. They are None until set: then the
default of the recipe counts, so that every default is written once.
"""

import torch
from detectron2.config import CfgNode


def add_detr_config(cfg: CfgNode) -> None:
    """Add this project's keys to `cfg` in place; adding them twice changes nothing."""
    from sparse_detr.recipes.meta_arch import RECIPES, recipe_options

    if "DETR" in cfg.MODEL:
        return
    options = {option.upper(): None for recipe in RECIPES for option in recipe_options(recipe)}
    cfg.MODEL.DETR = CfgNode(options)
    # Arguments of `sparse_detr.recipes.swin`, for MODEL.BACKBONE.NAME build_swin_backbone; None means its default.
    swin = ("SIZE", "IMAGE_SIZE", "NUM_MAPS", "DROP_PATH_RATE", "PRETRAINING")
    cfg.MODEL.SWIN = CfgNode(dict.fromkeys(swin))
    # The same of `dat`, for build_dat_backbone, and of `timm`, for build_timm_backbone.
    cfg.MODEL.DAT = CfgNode(dict.fromkeys(("SIZE", "IMAGE_SIZE", "NUM_MAPS", "DROP_PATH_RATE", "CONVENTION")))
    cfg.MODEL.TIMM = CfgNode(dict.fromkeys(("NAME", "NUM_MAPS", "FROZEN_NORMS", "CHECKPOINT_PATH")))
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _add_solver_keys(cfg.SOLVER)
    cfg.TEST.DETECTIONS_PER_IMAGE = None  # of the model and of the evaluator; None means the recipe's default
    cfg.TEST.SUPPRESS_DUPLICATES = None  # IoU above which the worse of two detections of a class is dropped
    cfg.TEST.BEST_METRIC = "bbox/AP"  # the score that chooses model_best.pth
    cfg.TEST.REPORT = True  # write a report into the output folder after the last evaluation
    cfg.TEST.VALIDATION_LOSS = None  # True, or a number of batches: evaluations give the losses too
    cfg.INPUT.VALUE_RANGE = None  # (black, white) of gray images of more than 8 bits, as in `read_image`
    cfg.INPUT.AUGMENTATION = None  # "photos", "aerial", "industrial": in place of RANDOM_FLIP
    cfg.INPUT.DRAFT_SHORT_SIDE = None  # decode large JPEGs at a part of their size in training; see `DetrDatasetMapper`
    cfg.DATALOADER.MAX_BAD_SHARE = 0.01  # stop when more than this share of the images cannot be used
    cfg.DATASETS.OWN = CfgNode({"TRAIN_JSON": "", "TRAIN_IMAGES": "", "VAL_JSON": "", "VAL_IMAGES": ""})
    cfg.DATASETS.OWN.BOXES_FROM_MASKS = False  # for annotations without a box


def _add_solver_keys(solver: CfgNode) -> None:
    solver.OPTIMIZER = "ADAMW"  # or "SGD": Detectron2's own
    solver.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of normalisation layers; None means WEIGHT_DECAY. WEIGHT_DECAY_NORM is for Detectron2's SGD.
    solver.NORM_WEIGHT_DECAY = None
    solver.SAMPLING_MULTIPLIER = 0.1
    solver.BATCH_SIZE_SCALING = "none"  # "sqrt", "linear": relative to 16 images
    # Norm of the gradient of the whole model. CLIP_GRADIENTS.CLIP_TYPE cannot say it: Detectron2 allows two values.
    solver.CLIP_GRAD_NORM = 0.1
    solver.ACCUMULATE = 1
    solver.BATCH = None  # "auto": the largest batch that fits, in place of IMS_PER_BATCH
    # Train the backbone with channels last in memory and frozen norms in the convolutions; numbers differ by rounding.
    solver.FAST_BACKBONE = True
    solver.CHECKPOINT_ACTIVATIONS = []  # "backbone", "encoder", "decoder": less memory, about a third more time
    solver.FREEZE = []  # names of parts that do not learn, such as "backbone" or "encoder.layers.*.ffn"
    solver.MAX_TO_KEEP = 10  # checkpoints; None keeps all
    solver.AMP.DTYPE = "bf16"
    solver.EMA = CfgNode({"ENABLED": False, "DECAY": 0.9997})
    # Evaluations without an improvement before the training ends; 0: never. METRIC None means TEST.BEST_METRIC.
    solver.EARLY_STOPPING = CfgNode({"PATIENCE": 0, "METRIC": None, "MIN_IMPROVEMENT": 0.0})
    solver.WRITERS = []  # "wandb", "mlflow": services that get losses and scores too
    solver.MAX_TIME = None  # "2h30m": the training ends after so much time
