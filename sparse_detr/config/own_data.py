"""Use a user's own data, from the command line or from the config of an earlier run."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from omegaconf import DictConfig

from sparse_detr.config.kinds import Config, kind_of
from sparse_detr.config.limits import limits_of
from sparse_detr.data.findings import Finding, refuse_errors
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr.data.formats import Part

OWN_DATA_KEYS = ("train_json", "train_images", "val_json", "val_images")
BOXES_FROM_MASKS = "boxes_from_masks"
FOLDER = "data"

logger = logging.getLogger(__name__)


def use_own_data(cfg: Config, paths: Mapping[str, Any], overrides: Sequence[str] = ()) -> None:
    """Register the data sets and write their names and number of classes into `cfg`.

    `cfg` keeps the paths, so that the `config.yaml` of a run is complete. Without new `paths`, those in `cfg` are used.

    Args:
        paths: values for OWN_DATA_KEYS, from the command line; missing ones are None or "". With "boxes_from_masks"
            true, an annotation without a box gets the box around its mask.
        overrides: of the command line; a `num_classes` among them that contradicts the data is refused.
    """
    given = {key: value for key in OWN_DATA_KEYS if (value := paths.get(key))}
    masks = {BOXES_FROM_MASKS: True} if paths.get(BOXES_FROM_MASKS) else {}
    if given and not {"train_json", "train_images"} & given.keys():  # validation data for the stored training data
        given = _stored_paths(cfg) | given
    if not (paths := given or _stored_paths(cfg)):
        if masks:
            raise UserError("--boxes-from-masks needs own data; add --train-json and --train-images")
        return
    paths |= masks
    _check_complete(paths)
    from sparse_detr.data.register import register_own_data

    limits, from_masks = limits_of(cfg), bool(paths.get(BOXES_FROM_MASKS))
    own = register_own_data(
        **{key: paths.get(key) for key in OWN_DATA_KEYS},
        boxes_from_masks=from_masks,
        num_queries=limits.num_queries,
        num_detections=limits.num_detections,
    )
    _refuse_other_number(cfg, own.num_classes, paths["train_json"], overrides)
    kind_of(cfg).choose(lazy=_write_lazy, yacs=_write_yacs)(cfg, own, paths)


def paths_of_folders(cfg: Config, train: str | None, val: str | None, *, share: float, seed: int) -> dict[str, Any]:
    """Return values for `use_own_data` from folders or files of COCO, YOLO, Pascal VOC or CSV.

    What is no COCO file becomes one in `data/` of the output folder; nothing is written beside the user's data. All
    decisions are logged.

    Args:
        train: the training data; None for those of the config.
        val: the validation data; None for a part of `train`.
        share, seed: of the images for validation where none are named, see `read_own_parts`.

    Raises:
        UserError: data cannot be read, or an entry cannot be used.
    """
    from sparse_detr.data.formats import read_own_parts, write_parts

    folder = Path(os.path.abspath(kind_of(cfg).get("train.output_dir") or "."), FOLDER)
    training = train or _stored_part(cfg)
    if training is None:
        raise UserError(f"--val {val} needs the training data, which give the classes; add --train")
    own = read_own_parts(training, val, share=share, seed=seed, folder=folder)
    for decision in own.decisions:
        logger.info(decision)
    _report(own.train.source, own.train.findings)
    parts = [("train", own.train)]
    if own.val is not None:
        _report(own.val.source, own.val.findings)
        parts.append(("val", own.val))
    values: dict[str, Any] = {}
    for (name, part), path in zip(parts, write_parts(parts, folder)):
        values |= {f"{name}_json": str(path), f"{name}_images": str(part.images)}
    return values | ({BOXES_FROM_MASKS: True} if any(part.needs_masks for _, part in parts) else {})


def _stored_part(cfg: Config) -> "Part | None":
    """Return the training data that the config names."""
    from sparse_detr.data.formats.coco import read_with_images

    stored = _stored_paths(cfg)
    if "train_json" not in stored or "train_images" not in stored:
        return None
    return read_with_images(Path(stored["train_json"]), Path(stored["train_images"]))


def _report(source: Path, findings: Sequence[Finding]) -> None:
    """Raise the errors among the findings; log all others."""
    refuse_errors(source, findings)
    for finding in findings:
        log = logger.warning if finding.severity == "warning" else logger.info
        log("%s: %s", source, finding)


def _check_complete(paths: Mapping[str, Any]) -> None:
    if "train_json" not in paths or "train_images" not in paths:
        raise UserError("own data need --train-json and --train-images, also for evaluation: they give the classes")
    if ("val_json" in paths) != ("val_images" in paths):
        raise UserError("--val-json and --val-images go together; give both or none")


def _stored_paths(cfg: Config) -> dict[str, Any]:
    stored = kind_of(cfg).get("train.own_data") or {}
    return {str(key).lower(): value for key, value in stored.items() if value}


def _refuse_other_number(cfg: Config, num_classes: int, train_json: str, overrides: Sequence[str]) -> None:
    """Refuse a number of classes that the user has set and that differs from the data's."""
    kind = kind_of(cfg)
    in_command = any(override.startswith("model.num_classes=") for override in overrides)
    given = kind.choose(lazy=in_command, yacs=True)  # a lazy config always has a number, a yacs one only if set
    chosen = kind.get("model.num_classes") if given else None
    if chosen not in (None, num_classes):
        raise UserError(
            f"num_classes is set to {chosen}, but {train_json} has {num_classes} categories; "
            "leave num_classes out to take it from the data"
        )


def _write_yacs(cfg: CfgNode, own, paths: Mapping[str, Any]) -> None:
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.CLASS_CHANNELS = own.num_classes, None
    cfg.DATASETS.TRAIN = (own.train_name,)
    cfg.DATASETS.TEST = (own.val_name,) if own.val_name else ()
    for key, value in paths.items():
        cfg.DATASETS.OWN[key.upper()] = value


def _write_lazy(cfg: DictConfig, own, paths: Mapping[str, Any]) -> None:
    cfg.model.num_classes, cfg.model.class_channels = own.num_classes, None
    cfg.dataloader.train.dataset.names = own.train_name
    if own.val_name and not ("test" in cfg.dataloader and "evaluator" in cfg.dataloader):
        raise UserError("this config has no dataloader.test or dataloader.evaluator; name one that has them")
    if "test" in cfg.dataloader:
        cfg.dataloader.test.dataset.names = own.val_name or own.train_name  # the demo takes the class names from it
    cfg.train.own_data = dict(paths)
