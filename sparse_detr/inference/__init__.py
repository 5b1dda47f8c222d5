"""Models in inference form: `optimize` makes one of a trained model."""

from sparse_detr.inference.optimize import optimize
from sparse_detr.inference.precision import PRECISIONS, optimize_to, precision_name

__all__ = ["PRECISIONS", "optimize", "optimize_to", "precision_name"]
