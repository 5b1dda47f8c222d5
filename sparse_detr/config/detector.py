"""From a config of either kind to its model: the one way, for every command, script and application."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from sparse_detr.config.building import build_part, build_yacs
from sparse_detr.config.kinds import Config, kind_of


def build_detector(cfg: Config, *, device: str | None = None) -> nn.Module:
    """The model that a config describes, in training mode; no checkpoint is loaded. `cfg` stays as it is.

    Args:
        device: where to put it; None for what the config says.

    Raises:
        UserError: it cannot be built; names the key of the innermost part that cannot.
    """
    return kind_of(cfg).choose(lazy=_from_lazy, yacs=_from_yacs)(cfg, device)


def _from_lazy(cfg: DictConfig, device: str | None) -> nn.Module:
    return build_part(cfg, "model").to(device or OmegaConf.select(cfg, "train.device") or "cpu")


def _from_yacs(cfg: CfgNode, device: str | None) -> nn.Module:
    import sparse_detr.recipes  # noqa: F401 registers the names

    if device is not None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
    return build_yacs("the model", build_model, cfg)
