"""Token-sparse detection transformers for Detectron2."""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("fvcore") is not None:
    from sparse_detr.analysis.flops import register_flop_handles

    register_flop_handles()
