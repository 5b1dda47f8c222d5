"""Limits of a config: how many boxes a model can find in an image, and how many of them its evaluation counts."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from omegaconf import DictConfig, OmegaConf

from sparse_detr.config.kinds import Config, kind_of

logger = logging.getLogger(__name__)

EVALUATION_LIMIT = "dataloader.evaluator.max_dets_per_image"
COCO_LIMIT = 100
"""The number of detections of a class in an image that COCO's scores count."""


@dataclass(frozen=True)
class Limits:
    """The largest numbers of boxes in an image; None where a config does not say.

    Args:
        num_queries: true boxes that the model can learn.
        num_detections: detections that it returns.
    """

    num_queries: int | None
    num_detections: int | None


def limits_of(cfg: Config) -> Limits:
    """Return the limits of the model that `cfg` describes, without building it."""
    model = kind_of(cfg).choose(lazy=_lazy_model, yacs=_yacs_model)(cfg)
    return Limits(num_queries=_num_queries(model), num_detections=_count_at(model, "postprocess.num_detections"))


def _lazy_model(cfg: DictConfig) -> Any:
    return OmegaConf.select(cfg, "model")


def _yacs_model(cfg: CfgNode) -> Any:
    """Return a lazy config of the model; its backbone is arbitrary, since the limits do not depend on it."""
    from sparse_detr.recipes.backbones import resnet
    from sparse_detr.recipes.meta_arch import RECIPES, recipe_config

    name = cfg.MODEL.META_ARCHITECTURE
    return recipe_config(name, cfg, resnet(50, num_maps=1)) if name in RECIPES else None


def _num_queries(model: Any) -> int | None:
    anchors, patterns = _count_at(model, "queries.anchors.num_anchors"), _count_at(model, "queries.num_patterns")
    if anchors is not None:
        return anchors * max(patterns or 0, 1)
    return _count_at(model, "queries.num_queries")


def _count_at(model: Any, key: str) -> int | None:
    value = OmegaConf.select(model, key) if OmegaConf.is_dict(model) else None
    return value if isinstance(value, int) else None


def evaluation_limit(name: str, cfg: Config) -> int:
    """Return how many detections of a class in an image the scores of a data set should count.

    The config's number, if it has one; else COCO's 100; more if an image has more boxes of a class than that. Warns
    where the config's number, or the model's number of detections, is too small for the data.
    """
    kind = kind_of(cfg)
    chosen, given = chosen_limit(cfg), limits_of(cfg).num_detections
    of_class, of_image = _most_boxes(name)
    if given is not None and of_image > given:
        logger.warning(
            f"an image of {name} has {of_image} boxes, but the model gives at most {given} detections; write "
            f"{kind.assignment('model.postprocess.num_detections', of_image)}"
        )
    if chosen is not None:
        if of_class > chosen:
            logger.warning(
                f"an image of {name} has {of_class} boxes of a class, but the evaluation counts at most {chosen} "
                "detections of a class; write "
                f"{kind.assignment(EVALUATION_LIMIT, of_class)}"
            )
        return chosen
    if of_class <= COCO_LIMIT:
        return COCO_LIMIT
    limit = max(of_class, given or 0)
    logger.warning(
        f"an image of {name} has {of_class} boxes of a class, more than the {COCO_LIMIT} detections that COCO's scores "
        f"count; {limit} are counted"
    )
    return limit


def chosen_limit(cfg: Config) -> int | None:
    """Return how many detections of a class in an image the config's scores count; None if it does not say."""
    kind = kind_of(cfg)
    # In yacs the key is also the model's number of detections, which may be below COCO's limit.
    chosen, least = kind.get(EVALUATION_LIMIT), kind.choose(lazy=0, yacs=COCO_LIMIT)
    return None if chosen is None else max(chosen, least)


def _most_boxes(name: str) -> tuple[int, int]:
    """Return the most boxes of one class, and of all classes, in an image of a data set; crowds do not count."""
    most = of_image = 0
    for record in DatasetCatalog.get(name) if name in DatasetCatalog else []:
        boxes = [box for box in record.get("annotations", []) if not box.get("iscrowd")]
        of_image = max(of_image, len(boxes))
        most = max(most, *Counter(box["category_id"] for box in boxes).values(), 0)
    return most, of_image
