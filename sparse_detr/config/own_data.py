"""A user's own data in COCO format, from the command line or from the config of an earlier run."""

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from omegaconf import OmegaConf

from sparse_detr.config.load import Config
from sparse_detr.errors import UserError

OWN_DATA_KEYS = ("train_json", "train_images", "val_json", "val_images")


def use_own_data(cfg: Config, paths: Mapping[str, str | None], overrides: Sequence[str] = ()) -> None:
    """Register the data sets and write their names and number of classes into `cfg`.

    The paths are kept in `cfg`, so that the `config.yaml` of a run is complete: without new `paths`, those in `cfg`
    are registered.

    Args:
        paths: values for OWN_DATA_KEYS, from the command line; missing ones are None or "".
        overrides: the command line's, to refuse a `num_classes` there that contradicts the data.
    """
    paths = {key: paths.get(key) for key in OWN_DATA_KEYS if paths.get(key)} or _stored_paths(cfg)
    if not paths:
        return
    _check_complete(paths)
    from sparse_detr.data.register import register_own_data

    own = register_own_data(**{key: paths.get(key) for key in OWN_DATA_KEYS})
    _refuse_other_number(cfg, own.num_classes, paths["train_json"], overrides)
    _write_yacs(cfg, own, paths) if isinstance(cfg, CfgNode) else _write_lazy(cfg, own, paths)


def _check_complete(paths: Mapping[str, str]) -> None:
    if "train_json" not in paths or "train_images" not in paths:
        raise UserError("own data need --train-json and --train-images (the classes come from the training file)")
    if ("val_json" in paths) != ("val_images" in paths):
        raise UserError("--val-json and --val-images go together")


def _stored_paths(cfg: Config) -> dict[str, str]:
    if isinstance(cfg, CfgNode):
        stored = {key: cfg.DATASETS.OWN[key.upper()] for key in OWN_DATA_KEYS} if "OWN" in cfg.DATASETS else {}
    else:
        stored = OmegaConf.select(cfg, "train.own_data") or {}
    return {key: value for key, value in stored.items() if value}


def _refuse_other_number(cfg: Config, num_classes: int, train_json: str, overrides: Sequence[str]) -> None:
    """Refuse a number of classes that the user has set by hand and that is not the data's."""
    if isinstance(cfg, CfgNode):
        chosen = cfg.MODEL.DETR.NUM_CLASSES
    else:
        given = any(override.startswith("model.num_classes=") for override in overrides)
        chosen = cfg.model.num_classes if given else None
    if chosen not in (None, num_classes):
        raise UserError(
            f"num_classes is set to {chosen}, but {train_json} has {num_classes} categories; "
            "leave num_classes out to take it from the data"
        )


def _write_yacs(cfg: CfgNode, own, paths: Mapping[str, str]) -> None:
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.CLASS_CHANNELS = own.num_classes, None
    cfg.DATASETS.TRAIN = (own.train_name,)
    cfg.DATASETS.TEST = (own.val_name,) if own.val_name else ()
    for key, value in paths.items():
        cfg.DATASETS.OWN[key.upper()] = value


def _write_lazy(cfg, own, paths: Mapping[str, str]) -> None:
    cfg.model.num_classes, cfg.model.class_channels = own.num_classes, None
    cfg.dataloader.train.dataset.names = own.train_name
    if own.val_name:
        cfg.dataloader.test.dataset.names = own.val_name
    else:
        cfg.dataloader.pop("evaluator", None)
        if "test" in cfg.dataloader:  # its mapper stays, which prepares images for the demo
            cfg.dataloader.test.pop("dataset", None)
    cfg.train.own_data = dict(paths)
