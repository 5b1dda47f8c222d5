"""How many boxes a model can find in an image, as its config says."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from omegaconf import OmegaConf

from sparse_detr.config.load import Config


@dataclass(frozen=True)
class Limits:
    """Boxes an image, at most; None where a config does not say.

    Args:
        num_queries: boxes that the model can learn.
        num_detections: detections that it gives.
    """

    num_queries: int | None
    num_detections: int | None


def limits_of(cfg: Config) -> Limits:
    """The limits of the model that `cfg` describes; builds nothing."""
    model = _yacs_model(cfg) if isinstance(cfg, CfgNode) else OmegaConf.select(cfg, "model")
    return Limits(num_queries=_num_queries(model), num_detections=_number(model, "postprocess.num_detections"))


def _yacs_model(cfg: CfgNode) -> Any:
    """Lazy config of the model with some backbone, which the limits do not depend on."""
    from sparse_detr.recipes.backbones import resnet
    from sparse_detr.recipes.meta_arch import RECIPES, recipe_config

    name = cfg.MODEL.META_ARCHITECTURE
    return recipe_config(name, cfg, resnet(50, num_maps=1)) if name in RECIPES else None


def _num_queries(model: Any) -> int | None:
    anchors, patterns = _number(model, "queries.anchors.num_anchors"), _number(model, "queries.num_patterns")
    if anchors is not None:
        return anchors * max(patterns or 0, 1)
    return _number(model, "queries.num_queries")


def _number(model: Any, key: str) -> int | None:
    value = OmegaConf.select(model, key) if OmegaConf.is_dict(model) else None
    return value if isinstance(value, int) else None
