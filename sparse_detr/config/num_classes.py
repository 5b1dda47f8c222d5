"""Compare the number of classes of a model with that of its data."""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from torch import nn

from sparse_detr.errors import UserError


def model_classes(model: nn.Module) -> int | None:
    """Return the number of classes that a model tells apart; None if the model does not say."""
    channels = getattr(model, "class_channels", None)
    return getattr(model, "num_classes", None) if channels is None else len(channels)


def check_num_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse data sets whose number of classes is not the model's; the error names both numbers.

    Detectron2 knows the classes of a data set only after reading it, so call this after building the loader.
    """
    in_model = model_classes(model)
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if None not in (in_model, classes) and len(classes) != in_model:
            raise UserError(
                f"the model has {in_model} classes and the data set {name} has {len(classes)}; set model.num_classes="
                f"{len(classes)} (lazy config) or MODEL.DETR.NUM_CLASSES {len(classes)} (yaml)"
            )
