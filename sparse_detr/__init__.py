"""Token-sparse detection transformers for Detectron2."""

import warnings
from importlib.util import find_spec

__version__ = "0.1.0"

# fvcore and Detectron2 script functions when they are imported; their users can do nothing about it.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")

if find_spec("fvcore") is not None:
    from sparse_detr.analysis.flops import register_flop_handles

    register_flop_handles()
