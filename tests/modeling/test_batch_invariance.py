"""In the exact behaviour a batch gives what its images give alone.

The transformer exactly: the stub backbone leaks nothing and fills padded cells with noise a hundred times as loud as
the features. A convolutional backbone lets padding leak in at the border: the zeros that a 3x3 convolution reads
beyond the last row of an image alone are, inside of a larger batch, the responses of earlier layers (bias and batch
norm) to that padding. Measured for MobileNetV2 in `test_a_convolutional_backbone_leaks_at_the_border_only`.
"""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.backbones import MobileNetV2
from sparse_detr.recipes import mobilenet_v2
from tests.modeling.tiny import build, picture

MODELS = [
    ("one_stage", {}),
    ("two_stage", {}),
    ("topk", {}),
    ("topk", {"num_levels": 5}),
    ("sparse", {"keep_ratio": 0.1}),
    ("sparse", {"keep_ratio": 0.3}),
    ("sparse", {"keep_ratio": 1.0}),
    ("objectness", {"keep_ratio": 0.3}),
    ("dino", {"denoising_queries": 0}),
    ("sparse_dino", {"denoising_queries": 0}),
    ("focus", {"denoising_queries": 0}),
    ("focus", {"denoising_queries": 0, "keep_ratio": 0.2, "num_levels": 5, "encoder_layers": 5}),
    ("focus_two_stage", {}),
    ("focus_one_stage", {"keep_ratio": 1.0}),
    ("dab", {}),
    ("dab", {"num_patterns": 2, "activation": "relu"}),
    ("dab_deformable", {"num_patterns": 2}),
    ("sparse_dab_deformable", {}),
]
# The last has one token a level, fewer than there are queries.
PICTURES = [
    picture(96, 64),
    picture(70, 125, boxes=((0.1, 0.1, 0.3, 0.9), (0.5, 0.2, 0.9, 0.6), (0.4, 0.4, 0.6, 0.6))),
    picture(8, 7, boxes=((0.2, 0.2, 0.9, 0.9),)),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options in MODELS]
every_model = pytest.mark.parametrize(("name", "options"), MODELS, ids=IDS)
SMALL, LARGE = picture(192, 160), picture(256, 256)


def run(model, pictures):
    """Outputs with noise in every padded cell."""
    model.backbone.real_sizes = [tuple(image["image"].shape[-2:]) for image in pictures]
    return model.outputs(pictures)


def close(actual, expected):
    assert_close(actual, expected, atol=1e-9, rtol=0)


def counted(group, image):
    """(logits, boxes) of the rows of an image that do not just fill the batch."""
    rows = slice(None) if group.valid is None else group.valid[image]
    return group.logits[image][rows], group.boxes[image][rows]


@every_model
def test_noise_in_padding_changes_no_score_selection_or_prediction(name, options):
    model = build(name, **options)
    batched = run(model, PICTURES)
    for image, alone in enumerate([run(model, [one]) for one in PICTURES]):
        real = ~batched.pyramid.padding_mask[image]
        assert torch.equal(batched.selection.keep[image][real], alone.selection.keep[0])
        assert not batched.selection.keep[image][~real].any()
        if alone.token_scores is not None:
            close(batched.token_scores[image][real], alone.token_scores[0])
        if alone.attention_map is not None:
            close(batched.attention_map[image][real], alone.attention_map[0])
        for group, other in zip(batched.groups, alone.groups, strict=True):
            for values, expected in zip(counted(group, image), counted(other, 0), strict=True):
                close(values, expected)


@every_model
def test_noise_in_padding_changes_no_memory_of_a_real_token(name, options):
    model, memory = build(name, **options), []
    model.encoder.register_forward_hook(lambda _, __, output: memory.append(output.memory))
    batched = run(model, PICTURES)
    for image, picture_alone in enumerate(PICTURES):
        run(model, [picture_alone])
        close(memory[0][image][~batched.pyramid.padding_mask[image]], memory[-1][0])


@every_model
def test_noise_in_padding_changes_no_detection(name, options):
    model = build(name, **options).eval()
    model.backbone.real_sizes = [tuple(image["image"].shape[-2:]) for image in PICTURES]
    batched = model(PICTURES)
    for image, found in zip(PICTURES, batched, strict=True):
        model.backbone.real_sizes = None
        found, alone = found["instances"], model([image])[0]["instances"]
        close(found.scores, alone.scores)
        # As sets: over one token all queries of a dense decoder with equal content score the same. Detectron2 keeps
        # boxes in float32, in pixels; before that they agree within 1e-9, as tested above.
        same = (found.pred_boxes.tensor[:, None] - alone.pred_boxes.tensor).abs().amax(-1) < 2e-5
        same &= found.pred_classes[:, None] == alone.pred_classes
        same &= (found.scores[:, None] - alone.scores).abs() < 1e-9
        assert same.any(0).all()
        assert same.any(1).all()


@every_model
def test_every_image_is_matched_as_it_is_alone(name, options):
    model = build(name, **options)
    targets = model.targets(PICTURES)
    batched = run(model, PICTURES)
    alone = [run(model, [image]) for image in PICTURES]
    for position, group in enumerate(batched.groups):
        matches = model.criterion.matcher(group, targets)
        for image, (rows, true) in enumerate(matches):
            other = alone[image].groups[position]
            expected_rows, expected_true = model.criterion.matcher(other, [targets[image]])[0]
            close(group.boxes[image][rows[true.argsort()]], other.boxes[0][expected_rows[expected_true.argsort()]])
            assert true.sort().values.tolist() == expected_true.sort().values.tolist()


@every_model
def test_losses_of_a_batch_are_the_weighted_mean_of_the_losses_alone(name, options):
    """By true boxes, and for the token scores by real tokens, or by foreground tokens."""
    model = build(name, **options)
    model.backbone.real_sizes = [tuple(image["image"].shape[-2:]) for image in PICTURES]
    batched = model.losses(PICTURES)
    model.backbone.real_sizes = None
    alone = [model.losses([image]) for image in PICTURES]
    boxes = [len(image["instances"]) for image in PICTURES]
    outputs = [model.outputs([image]) for image in PICTURES]
    shares = {"loss_token_score": [output.pyramid.num_tokens for output in outputs]}
    if "loss_foreground" in batched:
        true = [[target.boxes] for target in model.targets(PICTURES)]
        foreground = [model.supervision.labels(o.pyramid, b, o.image_sizes) for o, b in zip(outputs, true, strict=True)]
        shares["loss_foreground"] = [int(labels.sum()) for labels in foreground]
        assert all(shares["loss_foreground"])
    for key, loss in batched.items():
        share = shares.get(key, boxes)
        expected = sum(weight * losses[key] for weight, losses in zip(share, alone, strict=True)) / sum(share)
        close(loss, expected)


@pytest.mark.parametrize("name", ["topk", "sparse", "focus"])
def test_the_released_behaviour_does_depend_on_the_batch(name):
    model = build(name, behavior="released")
    batched, alone = run(model, PICTURES[:2]), run(model, PICTURES[:1])
    assert (batched.predictions.boxes[0] - alone.predictions.boxes[0]).abs().max() > 1e-3


@pytest.fixture
def convolutional():
    """A one-stage detector, whose queries keep their order, on MobileNetV2; the backbone as it is initialised."""
    model = build("one_stage", backbone=mobilenet_v2()).eval()
    torch.manual_seed(0)
    model.backbone = MobileNetV2().double()
    return model


def test_a_convolutional_backbone_leaks_at_the_border_only(convolutional):
    """In the quarter at the top left the leak is 0, 1e-6 and 1e-3 standard deviations at strides 8, 16 and 32."""
    batched, alone = (
        convolutional.backbone(convolutional._preprocess(images).tensor) for images in ([SMALL, LARGE], [SMALL])
    )
    for name, tolerance in (("stride8", 1e-12), ("stride16", 1e-4), ("stride32", 1e-2)):
        height, width = alone[name].shape[-2:]
        leak = (batched[name][:1, :, :height, :width] - alone[name]).abs() / alone[name].std()
        assert leak.max() > 0.1
        assert leak[..., : height // 2, : width // 2].max() < tolerance


def test_the_whole_model_with_a_convolutional_backbone_agrees_within_a_thousandth(convolutional):
    """Boxes within 1e-3 of the image and scores within 1e-3; measured 1e-4 and 5e-5 over three seeds."""
    with torch.no_grad():
        batched, alone = (convolutional.outputs(images).predictions for images in ([SMALL, LARGE], [SMALL]))
    assert_close(batched.boxes[0], alone.boxes[0], atol=1e-3, rtol=0)
    assert_close(batched.logits[0].sigmoid(), alone.logits[0].sigmoid(), atol=1e-3, rtol=0)
