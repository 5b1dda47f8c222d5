"""Wrong inputs of a model are refused with the name of the image, the value and the remedy."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, RotatedBoxes

from sparse_detr.errors import UserError
from sparse_detr.modeling.inputs import check_images, check_sizes, check_targets
from tests.modeling.tiny import NUM_CLASSES, build, picture

BOX = [10.0, 10.0, 50.0, 50.0]
NAN, INF = float("nan"), float("inf")


def sample(boxes=(BOX,), classes=(0,), *, size=(64, 96), image=None):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes).view(-1, 4))
    instances.gt_classes = classes if isinstance(classes, torch.Tensor) else torch.tensor(classes)
    image = torch.zeros(3, 64, 96, dtype=torch.uint8) if image is None else image
    return {"image": image, "instances": instances, "file_name": "x.png"}


def with_fields(**fields):
    item = sample()
    item["instances"] = Instances((64, 96), **fields)
    return item


def floats(low, high):
    return torch.linspace(low, high, 3 * 8 * 8).view(3, 8, 8)


WRONG_TARGETS = {
    "reversed": (sample([[50.0, 10.0, 10.0, 50.0]]), r"box \(50, 10, 10, 50\) of .* ends before it begins"),
    "one_of_two": (sample([BOX, [9.0, 8.0, 7.0, 9.0]], [0, 0]), r"box \(9, 8, 7, 9\) of .* ends before"),
    "nan": (sample([[10.0, NAN, 50.0, 50.0]]), r"box \(10, nan, 50, 50\) of .* is not finite"),
    "inf": (sample([[10.0, 10.0, INF, 50.0]]), "inf, 50.* is not finite"),
    "flat": (sample([[10.0, 10.0, 10.0, 50.0]]), "has no area; drop it"),
    "outside": (sample([[200.0, 10.0, 300.0, 50.0]]), "64 x 96 pixels .* lies outside of the image"),
    "left_of": (sample([[-50.0, 10.0, -1.0, 50.0]]), "lies outside of the image"),
    "far_too_large": (sample([[0.0, 0.0, 1000.0, 50.0]]), "lies outside of the image"),
    "class_below_0": (sample(classes=[-1]), r"class -1 of a true box is below 0; classes are 0 to 4"),
    "class_too_high": (sample(classes=[5]), "class 5 of a true box is not below the 5 classes"),
    "float_class": (sample(classes=[0.0]), "gt_classes is of torch.float32; give a tensor of int64"),
    "bool_class": (sample(classes=[True]), "gt_classes is of torch.bool"),
    "column_of_classes": (sample(classes=[[0]]), r"gt_boxes has shape \(1, 4\) and gt_classes \(1, 1\)"),
    "list_of_classes": (with_fields(gt_boxes=Boxes(torch.tensor([BOX])), gt_classes=[0]), "gt_classes is of list"),
    "tensor_of_boxes": (with_fields(gt_boxes=torch.tensor([BOX]), gt_classes=torch.tensor([0])), "structures.Boxes"),
    "rotated": (
        with_fields(gt_boxes=RotatedBoxes(torch.ones(1, 5)), gt_classes=torch.tensor([0])),
        r"gt_boxes has shape \(1, 5\)",
    ),
    "no_boxes": (with_fields(gt_classes=torch.tensor([0])), "the instances have no 'gt_boxes'"),
    "no_classes": (with_fields(gt_boxes=Boxes(torch.tensor([BOX]))), "the instances have no 'gt_classes'"),
    "other_size": (sample(size=(480, 640)), "an image of 480 x 640 pixels .* has 64 x 96; resize the boxes"),
    "swapped_size": (sample(size=(96, 64)), "96 x 64 .* has 64 x 96"),
    "no_instances": ({"image": torch.zeros(3, 8, 8), "file_name": "x.png"}, "no `instances` to learn from"),
    "dict_of_instances": ({**sample(), "instances": {"gt_boxes": []}}, "`instances` is dict"),
}


@pytest.mark.parametrize("name", WRONG_TARGETS)
def test_wrong_targets_are_refused_with_the_name_of_the_file(name):
    item, message = WRONG_TARGETS[name]
    with pytest.raises(UserError, match=f"^x.png: .*{message}"):
        check_targets(item, NUM_CLASSES)


def test_boxes_and_classes_of_different_lengths_are_refused():
    item = sample()
    item["instances"]._fields["gt_classes"] = torch.tensor([0, 1])
    with pytest.raises(UserError, match=r"gt_boxes has shape \(1, 4\) and gt_classes \(2,\)"):
        check_targets(item, NUM_CLASSES)


RIGHT_TARGETS = {
    "int32": sample(classes=torch.tensor([4], dtype=torch.int32)),
    "uint8": sample(classes=torch.tensor([4], dtype=torch.uint8)),
    "none": sample([], torch.zeros(0, dtype=torch.long)),
    "none_of_float": sample([], torch.zeros(0)),
    "whole_image": sample([[0.0, 0.0, 96.0, 64.0]]),
    "not_clipped": sample([[-20.0, -3.0, 120.0, 70.0]]),
    "tiny": sample([[0.0, 0.0, 0.01, 0.01]]),
    "double": sample(torch.tensor([BOX], dtype=torch.float64).tolist()),
}


@pytest.mark.parametrize("name", RIGHT_TARGETS)
def test_right_targets_pass(name):
    check_targets(RIGHT_TARGETS[name], NUM_CLASSES)


WRONG_IMAGES = {
    "shares": (floats(0, 1), "values of 0 to 1; 0 to 255 are expected: multiply by 255"),
    "normalised": (floats(-2.1, 2.6), "the model subtracts the mean itself"),
    "centred": (floats(-120, 140), "the model subtracts the mean itself"),
    "deep": (floats(0, 65535), "values of 0 to 65535; finite ones of 0 to 255"),
    "ten_bits": (floats(0, 1000), "values of 0 to 1000; scale them to 0..255"),
    "nan": (floats(0, 255).where(floats(0, 1) > 0.5, NAN), "nan"),
    "uint16": (torch.zeros(3, 8, 8, dtype=torch.uint16), "torch.uint16; scale it to 0..255"),
    "bool": (torch.zeros(3, 8, 8, dtype=torch.bool), "torch.bool"),
    "complex": (torch.zeros(3, 8, 8, dtype=torch.complex64), "torch.complex64"),
    "deep_int": (torch.full((3, 8, 8), 4000), "values of 4000 to 4000"),
    "hwc": (torch.zeros(8, 9, 3, dtype=torch.uint8), r"shape \(8, 9, 3\); give \(3, h, w\): permute\(2, 0, 1\)"),
    "rgba": (torch.zeros(4, 8, 8, dtype=torch.uint8), "drop the alpha channel"),
    "grey": (torch.zeros(1, 8, 8, dtype=torch.uint8), "repeat the grey channel"),
    "flat": (torch.zeros(8, 8, dtype=torch.uint8), "a grey image"),
    "batch": (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "one dict for every image of a batch"),
    "empty": (torch.zeros(3, 0, 8, dtype=torch.uint8), "no pixel"),
    "numpy": (np.zeros((8, 8, 3), np.uint8), "is numpy.ndarray; give a tensor"),
    "list": ([[0]], "is list"),
    "none": (None, "is NoneType"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_wrong_images_are_refused_with_the_name_of_the_file(name):
    image, message = WRONG_IMAGES[name]
    with pytest.raises(UserError, match=f"^x.png: 'image' .*{message}"):
        check_images([picture(8, 8), {"image": image, "file_name": "x.png"}], 3)


RIGHT_IMAGES = {
    "bytes": torch.zeros(3, 8, 8, dtype=torch.uint8),
    "one_pixel": torch.zeros(3, 1, 1, dtype=torch.uint8),
    "floats": floats(0, 255),
    "resampled": floats(-40, 290),
    "half": floats(0, 255).half(),
    "black": torch.zeros(3, 8, 8),
    "dark": floats(0, 255).gt(200).float(),
    "integers": torch.full((3, 8, 8), 200),
}


@pytest.mark.parametrize("name", RIGHT_IMAGES)
def test_right_images_pass(name):
    check_images([{"image": RIGHT_IMAGES[name]}], 3)


WRONG_BATCHES = {
    "dict": ({"image": torch.zeros(3, 8, 8)}, "not dict; put it into a list"),
    "tensor": (torch.zeros(2, 3, 8, 8), "not torch.Tensor"),
    "empty": ([], "the batch is empty"),
    "tensors": ([torch.zeros(3, 8, 8)], "image 0 of the batch is torch.Tensor; give a dict with 'image'"),
    "no_image": ([{"file_name": "x.png"}], "x.png: no 'image', only 'file_name'; give a tensor"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", WRONG_BATCHES)
def test_a_batch_that_is_no_list_of_dicts_is_refused_in_both_modes(name, training):
    batch, message = WRONG_BATCHES[name]
    with pytest.raises(UserError, match=message):
        build("one_stage").train(training)(batch)


WRONG_SIZES = [0, -5, None, NAN, INF, "480", torch.tensor([2, 3]), torch.tensor(0), torch.tensor(INF), np.ones(2)]


@pytest.mark.parametrize("value", WRONG_SIZES)
def test_a_height_or_width_that_is_no_positive_number_is_refused(value):
    with pytest.raises(UserError, match="'height' is .*; give pixels of the original image"):
        check_sizes([{"height": value}])
    check_sizes([{"height": np.int64(480), "width": 480.0}, {"width": torch.tensor(4)}, {}])


def test_labels_of_any_integer_type_give_the_same_losses():
    model = build("dino")
    long, short = (picture(64, 64) for _ in range(2))
    short["instances"].gt_classes = short["instances"].gt_classes.to(torch.int32)
    losses = []
    for item in (long, short):
        torch.manual_seed(0)
        losses.append({name: loss.item() for name, loss in model([item]).items()})
    assert losses[0] == losses[1]


def test_a_model_refuses_wrong_targets_and_wrong_images():
    with pytest.raises(UserError, match="ends before it begins"):
        build("sparse")([sample([[50.0, 50.0, 10.0, 10.0]])])
    for call in (build("sparse").eval(), build("sparse").outputs):
        with pytest.raises(UserError, match="multiply by 255"):
            call([{"image": floats(0, 1)}])


def test_the_trainer_names_the_wrong_box_and_not_the_predictions():
    from sparse_detr.engine.trainer import Trainer

    model = build("sparse")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model=model, data_loader=[[sample([[10.0, NAN, 50.0, 50.0]])]], optimizer=optimizer)
    with pytest.raises(UserError, match="x.png: the true box .* is not finite"):
        trainer.run_step()
