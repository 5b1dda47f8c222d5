"""Describe a training in one form, from a config of either kind."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator as Detectron2COCOEvaluator
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparse_detr.config.building import build_part, build_yacs
from sparse_detr.config.check_settings import check_settings
from sparse_detr.config.duration import seconds_in
from sparse_detr.config.kinds import Config, kind_of, names_in
from sparse_detr.config.limits import evaluation_limit
from sparse_detr.config.model import build_detector, build_test_mapper
from sparse_detr.config.overrides import accepts
from sparse_detr.errors import UserError
from sparse_detr.evaluation import COCOEvaluator
from sparse_detr.solver import detr_parameter_groups

CHECKPOINTER = {"period": 5000, "max_to_keep": 10}
EARLY_STOPPING = {"patience": 0, "metric": None, "min_improvement": 0.0}

Schedule = ParamScheduler | torch.optim.lr_scheduler.LRScheduler


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training besides model, data and optimiser. Periods are in iterations, times in seconds."""

    output_dir: str
    max_iter: int
    device: str
    init_checkpoint: str = ""
    seed: int = -1
    precision: str = "off"
    clip_grad_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    fast_backbone: bool = True
    checkpoint_activations: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=list)
    checkpointer: dict[str, Any] = field(default_factory=lambda: dict(CHECKPOINTER))
    eval_period: int = 5000
    log_period: int = 20
    vis_period: int = 0
    best_metric: str = "bbox/AP"
    report: bool = True
    validation_loss: bool | int = False
    early_stopping: dict[str, Any] = field(default_factory=lambda: dict(EARLY_STOPPING))
    max_time: float | None = None
    writers: list[str] = field(default_factory=list)
    ddp: dict[str, Any] = field(default_factory=lambda: {"broadcast_buffers": False})


@dataclass(frozen=True)
class EvaluationSet:
    """A data set to evaluate on; its loader and evaluator are built when needed."""

    names: list[str]
    build_loader: Callable[[], Iterable]
    build_evaluator: Callable[[], DatasetEvaluator]


@dataclass(frozen=True)
class Run:
    """The settings of a training, and functions that build its parts."""

    config: Config
    settings: TrainSettings
    train_names: list[str]
    evaluation_sets: list[EvaluationSet]
    build_model: Callable[[], nn.Module]
    build_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    build_schedule: Callable[[torch.optim.Optimizer], Schedule]
    build_train_loader: Callable[[], Iterable]

    @property
    def config_text(self) -> str:
        """Return the config as yaml, for people to read."""
        return kind_of(self.config).text()


def make_run(cfg: Config) -> Run:
    """Describe the training that `cfg` asks for.

    Raises:
        UserError: a setting cannot be used.
    """
    check_settings(cfg)
    return kind_of(cfg).choose(lazy=_run_from_lazy, yacs=_run_from_yacs)(cfg)


def _run_from_lazy(cfg: DictConfig) -> Run:
    for key in ("model", "optimizer", "lr_multiplier", "dataloader", "train"):
        if key not in cfg:
            raise UserError(f"the lazy config has no {key!r}; it is needed to train or evaluate")

    def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        cfg.optimizer.params.model = model
        try:
            return build_part(cfg, "optimizer")
        finally:
            del cfg.optimizer.params.model

    return Run(
        config=cfg,
        settings=_lazy_settings(cfg.train),
        train_names=names_in(cfg, "train"),
        evaluation_sets=_lazy_evaluation_sets(cfg),
        build_model=lambda: build_detector(cfg),
        build_optimizer=build_optimizer,
        build_schedule=lambda optimizer: build_part(cfg, "lr_multiplier"),
        build_train_loader=lambda: _lazy_train_loader(cfg),
    )


def _lazy_train_loader(cfg: DictConfig) -> Iterable:
    evaluated = [name for evaluation_set in _lazy_evaluation_sets(cfg) for name in evaluation_set.names]
    _refuse_missing_files([*names_in(cfg, "train"), *evaluated])
    return build_part(cfg, "dataloader.train")


def _lazy_settings(train: DictConfig) -> TrainSettings:
    """Return the settings in `cfg.train`; missing keys, which Detectron2's own configs lack, keep their defaults."""
    values = OmegaConf.to_container(train, resolve=True)
    for key in ("output_dir", "max_iter", "device"):
        if key not in values:
            raise UserError(f"the lazy config has no train.{key}; it is needed to train or evaluate")
    amp, ema = values.get("amp", {}), values.get("ema", {})
    values["init_checkpoint"] = os.path.expanduser(values.get("init_checkpoint") or "")
    values["checkpointer"] = {**CHECKPOINTER, **values.get("checkpointer", {})}
    values["early_stopping"] = {**EARLY_STOPPING, **values.get("early_stopping", {})}
    values["validation_loss"] = values.get("validation_loss") or False
    values["max_time"] = _seconds(values.get("max_time"))
    plain = {name: values[name] for name in TrainSettings.__dataclass_fields__ if name in values}
    return TrainSettings(
        **plain,
        precision=amp.get("dtype", "fp16") if amp.get("enabled") else "off",
        ema_decay=ema.get("decay", 0.9997) if ema.get("enabled") else None,
    )


def _seconds(time: str | None) -> float | None:
    return None if time is None else seconds_in(time)


def _lazy_evaluation_sets(cfg: DictConfig) -> list[EvaluationSet]:
    own_data = OmegaConf.select(cfg, "train.own_data") or {}
    no_validation = bool(own_data) and not own_data.get("val_json")  # dataloader.test is only the demo's preprocessing
    if no_validation or "evaluator" not in cfg.dataloader or "test" not in cfg.dataloader:
        return []
    return [
        EvaluationSet(
            names=names_in(cfg, "test"),
            build_loader=lambda: _lazy_test_loader(cfg),
            build_evaluator=lambda: _lazy_evaluator(cfg),
        )
    ]


def _lazy_test_loader(cfg: DictConfig) -> Iterable:
    _refuse_missing_files(names_in(cfg, "test"))
    return build_part(cfg, "dataloader.test")


def _lazy_evaluator(cfg: DictConfig) -> DatasetEvaluator:
    """Build the config's evaluator; COCO's gets the limit on detections that the data need."""
    evaluator = cfg.dataloader.evaluator
    if not _is_coco_evaluator(evaluator):
        return build_part(cfg, "dataloader.evaluator")
    limit = evaluation_limit(evaluator.dataset_name, cfg)
    if evaluator.get("max_dets_per_image") is not None:
        return build_part(cfg, "dataloader.evaluator")
    evaluator.max_dets_per_image = limit
    try:
        return build_part(cfg, "dataloader.evaluator")
    finally:
        del evaluator.max_dets_per_image


def _is_coco_evaluator(evaluator: Any) -> bool:
    """Return whether it is COCO's evaluator for one data set, or a subclass that takes the same limit."""
    target = evaluator.get("_target_") if OmegaConf.is_dict(evaluator) else None
    kind = locate(target) if isinstance(target, str) else target
    is_coco = (
        isinstance(kind, type) and issubclass(kind, Detectron2COCOEvaluator) and accepts(kind, "max_dets_per_image")
    )
    return is_coco and isinstance(evaluator.get("dataset_name"), str)


def _run_from_yacs(cfg: CfgNode) -> Run:
    from detectron2.solver import build_lr_scheduler

    return Run(
        config=cfg,
        settings=_yacs_settings(cfg),
        train_names=names_in(cfg, "train"),
        evaluation_sets=[_yacs_evaluation_set(cfg, name) for name in names_in(cfg, "test")],
        build_model=lambda: build_detector(cfg),
        build_optimizer=lambda model: build_yacs_optimizer(cfg, model),
        build_schedule=lambda optimizer: build_yacs("the learning-rate schedule", build_lr_scheduler, cfg, optimizer),
        build_train_loader=lambda: _yacs_train_loader(cfg),
    )


def _yacs_settings(cfg: CfgNode) -> TrainSettings:
    solver = cfg.SOLVER
    if solver.CLIP_GRADIENTS.ENABLED:
        raise UserError(
            "SOLVER.CLIP_GRADIENTS clips each parameter alone; "
            "write SOLVER.CLIP_GRADIENTS.ENABLED False and SOLVER.CLIP_GRAD_NORM <norm> for the whole model"
        )
    return TrainSettings(
        output_dir=cfg.OUTPUT_DIR,
        max_iter=solver.MAX_ITER,
        device=cfg.MODEL.DEVICE,
        init_checkpoint=os.path.expanduser(cfg.MODEL.WEIGHTS or ""),
        seed=cfg.SEED,
        precision=solver.AMP.DTYPE if solver.AMP.ENABLED else "off",
        clip_grad_norm=solver.CLIP_GRAD_NORM or None,
        accumulate=solver.ACCUMULATE,
        ema_decay=solver.EMA.DECAY if solver.EMA.ENABLED else None,
        fast_backbone=solver.FAST_BACKBONE,
        checkpoint_activations=list(solver.CHECKPOINT_ACTIVATIONS),
        freeze=list(solver.FREEZE),
        checkpointer={"period": solver.CHECKPOINT_PERIOD, "max_to_keep": solver.MAX_TO_KEEP},
        eval_period=cfg.TEST.EVAL_PERIOD,
        vis_period=cfg.VIS_PERIOD,
        best_metric=cfg.TEST.BEST_METRIC,
        report=cfg.TEST.REPORT,
        validation_loss=cfg.TEST.VALIDATION_LOSS or False,
        early_stopping={name.lower(): value for name, value in solver.EARLY_STOPPING.items()},
        max_time=_seconds(solver.MAX_TIME),
        writers=list(solver.WRITERS),
    )


def build_yacs_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW with the groups of `detr_parameter_groups`, or Detectron2's SGD."""
    from detectron2.solver import build_optimizer

    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_optimizer(cfg, model)
    groups = detr_parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        norm_weight_decay=solver.NORM_WEIGHT_DECAY,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
        sampling_multiplier=solver.SAMPLING_MULTIPLIER,
        total_batch_size=solver.IMS_PER_BATCH,
        accumulate=solver.ACCUMULATE,
        batch_size_scaling=solver.BATCH_SIZE_SCALING,
    )
    return torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)


def _yacs_train_loader(cfg: CfgNode) -> Iterable:
    from sparse_detr.data.loader import build_train_loader

    _refuse_unknown_data_sets(cfg)
    _refuse_missing_files([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
    return build_train_loader(cfg)


def _refuse_unknown_data_sets(cfg: CfgNode) -> None:
    """Refuse unknown data sets now, also those that only the first evaluation would read."""
    for key in ("TRAIN", "TEST"):
        unknown = [name for name in cfg.DATASETS[key] if name not in DatasetCatalog]
        if unknown:
            raise UserError(
                f"DATASETS.{key} names {', '.join(unknown)}, which is not registered; own data are named with "
                "--train-json, --train-images, --val-json and --val-images"
            )


def _refuse_missing_files(names: Iterable[str]) -> None:
    """Refuse data sets whose annotation file is not there, such as those of Detectron2 on a new machine."""
    for name in names:
        path = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
        if path and "://" not in path and not os.path.isfile(path):
            raise UserError(
                f"the data set {name} needs {path}, which does not exist; set DETECTRON2_DATASETS to the folder of "
                "Detectron2's data sets, or name own data with --train-json and --train-images"
            )


def _yacs_evaluation_set(cfg: CfgNode, name: str) -> EvaluationSet:
    def build_loader() -> Iterable:
        from detectron2.data import get_detection_dataset_dicts

        from sparse_detr.data.loader import build_test_loader

        _refuse_missing_files([name])
        return build_test_loader(
            dataset=get_detection_dataset_dicts(name, filter_empty=False),
            mapper=build_test_mapper(cfg),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    output_dir = os.path.join(cfg.OUTPUT_DIR, "inference")
    return EvaluationSet(
        names=[name],
        build_loader=build_loader,
        build_evaluator=lambda: COCOEvaluator(
            name, tasks=("bbox",), output_dir=output_dir, max_dets_per_image=evaluation_limit(name, cfg)
        ),
    )
