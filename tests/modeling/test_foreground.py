"""Foreground labels by hand, and the loss of scores that predict them."""

import math

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.modeling.training.foreground import ForegroundLabels, ForegroundSupervision, size_ranges
from sparse_detr.structures import DetectorOutput, Targets
from tests.modeling.tiny import make_pyramid

# A picture of 128 x 128 pixels at strides 8, 16, 32 and 64.
SHAPES = ((16, 16), (8, 8), (4, 4), (2, 2))
SIZES = ((128, 128),)
NONE = torch.zeros(0, 4)


def boxes_of(*corners, size=(128, 128)):
    """Return (T, 4) cxcywh in [0, 1] of boxes given by their corners in pixels."""
    height, width = size
    x1, y1, x2, y2 = torch.tensor(corners, dtype=torch.float64).view(-1, 4).unbind(1)
    return torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], 1)


def make_labels(**options):
    return ForegroundLabels(finest_range=64, **options)


def make_supervision(**options):
    return ForegroundSupervision(**{"labels": make_labels(), "weight": 1.5, **options})


def foreground(labels, boxes, pyramid=None, sizes=SIZES):
    """Return for every level the (row, column) of the foreground tokens of the first image."""
    pyramid = pyramid or make_pyramid(SHAPES)
    levels = zip(pyramid.split(labels(pyramid, [boxes], sizes)), pyramid.spatial_shapes, strict=True)
    return [level[0].view(shape).nonzero().tolist() for level, shape in levels]


def square(rows):
    return [[row, column] for row in rows for column in rows]


def output_of(scores, *, shape=(1, 4), valid_shapes=None, sizes=((8, 32),)):
    return DetectorOutput(
        groups=(),
        predictions=None,
        pyramid=make_pyramid((shape,), *(valid_shapes or [(shape,)] * len(scores))),
        selection=None,
        token_scores=torch.tensor(scores, dtype=torch.float64),
        attention_map=None,
        image_sizes=sizes,
    )


def targets(*boxes):
    return [Targets(labels=torch.zeros(len(b), dtype=torch.long), boxes=b) for b in boxes]


@pytest.mark.parametrize(
    ("rule", "starts"), [("chessboard", [0, 32, 80, 168]), ("side", [0, 64, 128, 256])], ids=["chessboard", "side"]
)
def test_ranges_of_sizes(rule, starts):
    assert size_ranges(4, 64, rule) == (starts, [64, 128, 256, math.inf])
    assert size_ranges(1, 64, rule) == ([0], [math.inf])
    assert size_ranges(5, 32, "chessboard") == ([0, 16, 40, 84, 170], [32, 64, 128, 256, math.inf])


def test_a_box_of_a_hundred_pixels_belongs_to_two_levels_by_its_longer_side():
    """Half the side is 50: in [0, 64] and [32, 128], not in [80, 256].

    The box is from 14 to 114. Twelve centres of stride 8 are inside, 20, 28, ..., 108, and six of stride 16, 24, ...,
    104.
    """
    found = foreground(make_labels(), boxes_of((14, 14, 114, 114)))
    assert found == [square(range(2, 14)), square(range(1, 7)), [], []]


def test_released_labels_of_the_same_box_are_split_by_the_farthest_side():
    """A token d pixels from the centre of the box is 50 + d from the farthest side.

    A distance up to 64, so d up to 14, belongs to stride 8: centres 52, 60, 68 and 76. A larger one belongs to stride
    16: all centres 24, 40, 56, 72, 88, 104 in the box, except the four at 56 and 72.
    """
    found = foreground(make_labels(rule="side", strides=(8, 16, 32)), boxes_of((14, 14, 114, 114)))
    ring = [cell for cell in square(range(1, 7)) if cell not in square((3, 4))]
    assert found == [square((6, 7, 8, 9)), ring, [], []]


def test_ends_of_a_range_belong_to_it_and_in_the_released_rule_starts_do_not():
    """Half the longer side is exactly 32, where the second range starts, or 64, where the first one ends."""
    labels = make_labels()
    assert [bool(level) for level in foreground(labels, boxes_of((30, 30, 94, 60)))] == [True, True, False, False]
    assert [bool(level) for level in foreground(labels, boxes_of((0, 30, 128, 60)))] == [True, True, False, False]
    # Two levels with one token each, at (2, 2), 64 pixels from the farthest side.
    released = make_labels(rule="side", strides=(4, 4))
    found = foreground(released, boxes_of((-62, -62, 66, 66)), make_pyramid(((1, 1), (1, 1))))
    assert found == [[[0, 0]], []]


def test_a_border_is_not_inside():
    """The box reaches from one cell centre to another; only the centre between them is inside."""
    assert foreground(make_labels(), boxes_of((12, 12, 28, 28)))[0] == [[2, 2]]


def test_a_box_without_a_centre_in_it_has_no_token():
    assert foreground(make_labels(), boxes_of((13, 13, 19, 19))) == [[], [], [], []]


def test_released_centres_lie_at_whole_strides_and_exact_ones_at_reference_points():
    """A picture 40 pixels wide has one token at stride 64: in the middle at 20, or at 32."""
    pyramid = make_pyramid(((1, 1),))
    near, far = boxes_of((15, 0, 25, 64), size=(64, 40)), boxes_of((27, 0, 37, 64), size=(64, 40))
    for box, ours, released in ((near, True, False), (far, False, True)):
        assert bool(foreground(make_labels(), box, pyramid, ((64, 40),))[0]) == ours
        assert bool(foreground(make_labels(rule="side", strides=(64,)), box, pyramid, ((64, 40),))[0]) == released


def test_many_boxes_are_the_union_of_each():
    boxes, labels, pyramid = (
        boxes_of((14, 14, 114, 114), (0, 0, 40, 40), (90, 5, 100, 9)),
        make_labels(),
        make_pyramid(SHAPES),
    )
    each = torch.stack([labels(pyramid, [box[None]], SIZES) for box in boxes]).any(0)
    assert torch.equal(labels(pyramid, [boxes], SIZES), each)


@pytest.mark.parametrize("rule", ["chessboard", "side"])
def test_padding_is_never_foreground(rule):
    """The box covers a whole picture of half the height of the batch."""
    pyramid = make_pyramid(SHAPES, SHAPES, ((8, 16), (4, 8), (2, 4), (1, 2)))
    labels = make_labels(rule=rule, strides=(8,) if rule == "side" else None)
    found = labels(pyramid, [NONE.double(), boxes_of((-500, -500, 600, 600))], (*SIZES, (64, 128)))
    assert not found[0].any()
    assert found[1].any()
    assert not (found & pyramid.padding_mask).any()


@pytest.mark.parametrize("rule", ["chessboard", "side"])
def test_a_batch_without_any_box_has_no_foreground(rule):
    found = make_labels(rule=rule)(make_pyramid(SHAPES, SHAPES, SHAPES), [NONE, NONE], SIZES * 2)
    assert found.shape == (2, 340)
    assert not found.any()


def focal(score, positive):
    p = 1 / (1 + math.exp(-score))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def test_the_loss_is_the_focal_loss_of_valid_tokens_per_foreground_token():
    """Centres are 4, 12, 20, 28; the first box holds 12 and 20, the second one, of a narrower picture, only 4."""
    output = output_of([[0.5, 2.0, -1.0, -3.0], [1.0, -2.0, 0.5, -9.0]], valid_shapes=[((1, 4),), ((1, 3),)])
    output = DetectorOutput(**{**vars(output), "image_sizes": ((8, 32), (8, 24))})
    boxes = boxes_of((8, 0, 24, 8), size=(8, 32)), boxes_of((0, 0, 8, 8), size=(8, 24))
    first = focal(0.5, False) + focal(2.0, True) + focal(-1.0, True) + focal(-3.0, False)
    second = focal(1.0, True) + focal(-2.0, False) + focal(0.5, False)
    labels = make_labels()
    loss = make_supervision(labels=labels)(output, targets(*boxes))["loss_foreground"]
    assert loss.item() == pytest.approx(1.5 * (first + second) / 3)
    released = make_supervision(labels=labels, weight=2.0, normalization="image", padding="negative")
    loss = released(output, targets(*boxes))["loss_foreground"]
    assert loss.item() == pytest.approx(2.0 * (first / 2 + second + focal(-9.0, False)) / 2)


@pytest.mark.parametrize("normalization", ["batch", "image"])
def test_without_foreground_the_loss_is_that_of_the_background(normalization):
    output = output_of([[0.5, -1.0, -2.0, 1.0]])
    supervision = make_supervision(normalization=normalization)
    loss = supervision(output, targets(NONE.double()))["loss_foreground"]
    assert loss.item() == pytest.approx(1.5 * sum(focal(score, False) for score in (0.5, -1.0, -2.0, 1.0)))


@pytest.mark.parametrize("score", [-200.0, 200.0])
def test_saturated_scores_have_finite_losses_and_gradients(score):
    output = output_of([[score] * 4])
    output.token_scores.requires_grad_()
    supervision = make_supervision()
    loss = supervision(output, targets(boxes_of((8, 0, 24, 8), size=(8, 32))))["loss_foreground"]
    loss.backward()
    assert loss.isfinite()
    assert output.token_scores.grad.isfinite().all()


def test_ignored_padding_gets_no_gradient():
    output = output_of([[1.0, -2.0, 0.5, 7.0]], valid_shapes=[((1, 3),)], sizes=((8, 24),))
    output.token_scores.requires_grad_()
    loss = make_supervision()(output, targets(NONE.double()))["loss_foreground"]
    loss.backward()
    assert_close(loss.item(), 1.5 * (focal(1.0, False) + focal(-2.0, False) + focal(0.5, False)))
    assert output.token_scores.grad[0, :3].all()
    assert output.token_scores.grad[0, 3] == 0
