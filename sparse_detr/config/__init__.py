"""Configs of two kinds, LazyConfig and yacs, told apart by content; either becomes a `Run`."""

from sparse_detr.config.converted import model_config
from sparse_detr.config.keys import add_detr_config
from sparse_detr.config.load import load_config

__all__ = ["add_detr_config", "load_config", "model_config"]
