"""Train or evaluate a detector."""

from sparse_detr.train import add_arguments, run

__all__ = ["add_arguments", "run"]
