"""Token-sparse detection transformers for Detectron2.

`sparse_detr.Predictor` is a loaded detector; its module is imported at the first use.
"""

import warnings
from typing import TYPE_CHECKING, Any

from sparse_detr._flop_counter import teach_flop_counter
from sparse_detr._threads import let_waiting_threads_sleep

if TYPE_CHECKING:
    from sparse_detr.predictor import Predictor

__all__ = ["Predictor"]

__version__ = "0.1.0"

let_waiting_threads_sleep()  # before anything loads PyTorch

# fvcore and Detectron2 use torch.jit.script when they are imported; a user cannot change that.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")

teach_flop_counter()


def __getattr__(name: str) -> Any:
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sparse_detr.predictor import Predictor

    return Predictor
