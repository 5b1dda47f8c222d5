"""Whole models in half precision and under autocast, on a padded batch: positions and boxes keep float32."""

import pytest
import torch
from detectron2.config import instantiate
from torch.testing import assert_close

from sparse_detr.layers import MaskedGroupNorm, embed_tokens
from sparse_detr.modeling.selection import ScoringNetwork
from sparse_detr.modeling.selection.top_down import interpolate_valid
from sparse_detr.recipes.backbones import swin
from tests.modeling.tiny import MODELS, build, make_pyramid, picture

HALF = [torch.bfloat16, torch.float16]
BATCH = [picture(100, 130), picture(64, 96, seed=1)]
# Median distance between the logits of a query, which are about 5, and those of the nearest query of the other output.
# A few queries start from other tokens, because their scores are equal in half precision.
WITHIN = {torch.bfloat16: 0.6, torch.float16: 0.03}


def outputs(model):
    torch.manual_seed(0)  # the random scorer gives other scores in every run
    with torch.no_grad():
        return model.outputs(BATCH)


def median_distance(output, expected):
    """Return the median distance from the queries of one output to the nearest query of the other."""
    return torch.cdist(output.predictions.logits.double(), expected.predictions.logits.double()).amin(-1).median()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_half_precision_detects_in_a_padded_batch_what_its_weights_detect_in_single(name, behavior, dtype):
    model = build(name, dtype=dtype, behavior=behavior).eval()
    found = outputs(model)
    assert median_distance(found, outputs(model.float())) < WITHIN[dtype]
    assert found.predictions.logits.dtype == dtype
    assert found.predictions.boxes.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_autocast_detects_in_a_padded_batch_what_single_precision_detects(name, dtype):
    model = build(name, dtype=torch.float32).eval()
    expected = outputs(model)
    with torch.autocast("cpu", dtype=dtype):
        found = outputs(model)
    assert median_distance(found, expected) < WITHIN[dtype]
    assert found.predictions.boxes.dtype == torch.float32


@pytest.mark.parametrize("image_dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_whole_numbers_of_any_type_are_the_same_image_for_a_model_of_any_type(dtype, image_dtype):
    model = build("sparse", dtype=dtype).eval()
    images = [item["image"] for item in BATCH]
    whole = [image.round().clamp(0, 255).to(torch.uint8) for image in images]
    with torch.no_grad():
        expected = model.outputs([{"image": image} for image in whole])
        found = model.outputs([{"image": image.to(image_dtype)} for image in whole])
    assert_close(found.predictions.logits, expected.predictions.logits, rtol=0, atol=0)


@pytest.mark.parametrize("half", ["model", "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_trains_on_a_padded_batch(name, half):
    model = build(name, dtype=torch.bfloat16 if half == "model" else torch.float32).train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half == "autocast"):
        losses = model(BATCH)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", HALF)
def test_detections_of_half_precision_are_not_rounded_to_multiples_of_eight_pixels(dtype):
    """In bfloat16, numbers near 2000 are multiples of 8."""
    model = build("refined", dtype=dtype).eval()
    with torch.no_grad():
        (found,) = model([{"image": picture(64, 96)["image"], "height": 1333, "width": 2000}])
    boxes = found["instances"].pred_boxes.tensor
    assert boxes.dtype == torch.float32
    assert (boxes % 1).count_nonzero() > boxes.numel() / 2


@pytest.mark.parametrize("dtype", HALF)
def test_a_swin_of_half_precision_gives_maps_of_half_precision(dtype):
    """Detectron2's own Swin adds float32 masks to its attention and fails."""
    torch.manual_seed(0)
    config = swin().config
    config.update(depths=[2, 2, 1, 1], embed_dim=24, drop_path_rate=0.0)
    backbone = instantiate(config).to(dtype).eval()
    image = torch.randn(1, 3, 80, 100).to(dtype)
    with torch.no_grad():
        maps = backbone(image)
        expected = backbone.float()(image.float())
    for name in maps:
        assert maps[name].dtype == dtype
        assert_close(maps[name].float(), expected[name], atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("weights", "result"), [(torch.float16, torch.float16), (torch.float32, torch.float32)])
def test_normalised_maps_have_the_dtype_of_the_weights(weights, result):
    """Autocast normalises half precision maps with float32 weights."""
    valid = torch.ones(1, 3, 4, dtype=torch.bool)
    x = torch.randn(1, 8, 3, 4).half()
    norm = MaskedGroupNorm(4, 8).to(weights)
    assert norm(x, valid).dtype == result
    assert_close(norm(x, valid).float(), norm.float()(x.float()), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_positions_are_rounded_once(dtype):
    pyramid = make_pyramid(((1, 300),), ((1, 300),), ((1, 170),))
    exact = embed_tokens(pyramid, 64, dtype=torch.float32)
    assert torch.equal(embed_tokens(pyramid, 64, dtype=dtype), exact.to(dtype))


def test_the_mean_over_an_images_tokens_does_not_overflow():
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=8).half()
    with torch.no_grad():
        network.embed.bias.fill_(30.0)  # 30 * 4000 is more than float16 holds
    x, padding = torch.randn(1, 4000, 8).half(), torch.zeros(1, 4000, dtype=torch.bool)
    padding[:, -1] = True
    assert_close(network(x, padding).float(), network.float()(x.float(), padding), atol=0.05, rtol=0.01)


@pytest.mark.parametrize("dtype", HALF)
def test_scores_are_interpolated_between_the_right_tokens_of_a_wide_level(dtype):
    pyramid = make_pyramid(((1, 400), (1, 200)))
    values = torch.zeros(1, 200)
    values[0, 190] = 1
    expected = interpolate_valid(values, pyramid, 1, 0)
    assert torch.equal(interpolate_valid(values.to(dtype), pyramid, 1, 0), expected.to(dtype))
