"""The number of classes of a model against that of its data."""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog
from torch import nn

from sparse_detr.errors import UserError


def model_classes(model: nn.Module) -> int | None:
    """How many classes of a data set a model tells apart; None for a model that does not say."""
    channels = getattr(model, "class_channels", None)
    return getattr(model, "num_classes", None) if channels is None else len(channels)


def check_num_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse data sets with another number of classes than the model, naming both numbers.

    Detectron2 knows the classes of a data set once it has been read, so call it after building its loader.
    """
    in_model = model_classes(model)
    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if None not in (in_model, classes) and len(classes) != in_model:
            raise UserError(
                f"the model has {in_model} classes and the data set {name} has {len(classes)}; set model.num_classes="
                f"{len(classes)} (lazy config) or MODEL.DETR.NUM_CLASSES {len(classes)} (yaml)"
            )
