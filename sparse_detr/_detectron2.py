"""How to install Detectron2, which has no official package."""

from importlib.util import find_spec

from sparse_detr.errors import UserError

HOW_TO_INSTALL = """Detectron2 is not installed. Either
  1. upstream:       pip install --no-build-isolation "git+https://github.com/facebookresearch/detectron2"
  2. pinned package: python scripts/install_detectron2.py  (sal-detectron2 0.7.2: upstream a59f0563)
then run the command again."""


def require_detectron2() -> None:
    """Raise a `UserError` that says how to install Detectron2 if it is missing."""
    if find_spec("detectron2") is None:
        raise UserError(HOW_TO_INSTALL)
