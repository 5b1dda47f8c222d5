"""The studies of the Sparse DETR paper, one module each; `sparse-detr study` runs them.

A module has `add_arguments(parser)` and `make(args) -> Study`; see `sparse_detr.studies.driver`.
"""

from importlib import import_module
from types import ModuleType

SUMMARIES = {
    "referred": "share of the encoder's tokens that the decoder refers to: about 45 %% in the paper",
    "other-rho": "a model trained at one rho, evaluated at others",
    "complexity": "GFLOPs and weights of models over rho, with the papers' numbers beside; nothing is trained",
    "criteria": "tokens by the decoder's attention map, by objectness, or at random, each trained at several rho",
    "depth": "encoders of 3 to 12 layers, with and without the auxiliary loss of the encoder",
    "teacher": "training with the tokens of a trained teacher's attention map, in two stages",
}
"""Name -> help."""


def module_of(name: str) -> ModuleType:
    """Return the module of a study."""
    return import_module(f"sparse_detr.studies.{name.replace('-', '_')}")
