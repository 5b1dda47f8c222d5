"""A model is refused for data with another number of classes."""

import pytest
from detectron2.data import MetadataCatalog
from torch import nn

from sparse_detr.config.num_classes import check_num_classes
from sparse_detr.errors import UserError


@pytest.fixture
def three_classes():
    name = "data_with_three_classes"
    MetadataCatalog.get(name).thing_classes = ["a", "b", "c"]
    yield name
    MetadataCatalog.pop(name)


def model(**attributes):
    module = nn.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_another_number_of_classes_is_refused_with_both_numbers(three_classes):
    with pytest.raises(UserError, match="the model has 80 classes and the data set data_with_three_classes has 3"):
        check_num_classes(model(num_classes=80), [three_classes])


def test_equal_number_passes(three_classes):
    check_num_classes(model(num_classes=3), [three_classes])


def test_model_with_more_logits_than_classes_counts_the_ones_it_uses(three_classes):
    check_num_classes(model(num_classes=91, class_channels=[1, 2, 3]), [three_classes])


def test_models_and_data_without_a_number_of_classes_pass(three_classes):
    check_num_classes(model(), [three_classes])
    check_num_classes(model(num_classes=80), ["data_without_class_names"])
    MetadataCatalog.pop("data_without_class_names")
