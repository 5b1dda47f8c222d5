"""What holds for the model of every registered recipe; a new row of `RECIPES` is tested without a line here.

Sizes are those of the stub, as far as a recipe has the option; all other options are the recipe's defaults.
"""

import io
from functools import partial

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch.testing import assert_close

from sparse_detr.config import add_detr_config
from sparse_detr.modeling.queries import TopKQueries
from sparse_detr.modeling.tokenizers import MultiScaleTokenizer, RowColumnTokenizer
from sparse_detr.recipes import RECIPES
from sparse_detr.recipes.meta_arch import recipe_options
from tests.modeling.tiny import NUM_CLASSES, SIZES, PatchBackbone, patch_backbone, picture, shake

NUM_MAPS = {"multi_scale": 3, "single_scale": 1}
BATCH = [picture(96, 64), picture(70, 125, boxes=((0.1, 0.1, 0.3, 0.9),))]
# Median distance between the logits of a query, which are about 5, and those of the nearest query in single precision.
WITHIN = 0.6

every_recipe = pytest.mark.parametrize("name", RECIPES)


def options_of(name):
    """Return the sizes that the recipe has as options, and no denoising, whose noise is random."""
    known = recipe_options(name)
    return {key: value for key, value in {**SIZES, "denoising_queries": 0}.items() if key in known}


def lazy_config(name, **options):
    """Return the LazyCall of the recipe on the stub: on all its maps, or on the coarsest if the recipe reads one."""
    recipe, backbone = RECIPES[name].functions[0], patch_backbone()
    options = options_of(name) | options
    try:
        return recipe(backbone=backbone, **options)
    except ValueError:  # it reads one map
        backbone.config.num_maps = 1
        return recipe(backbone=backbone.coarsest(), **options)


def build(name):
    torch.manual_seed(0)
    model = instantiate(lazy_config(name)).double()
    shake(model)
    return model


def run(model, pictures):
    """Return the outputs, with noise in every padded cell."""
    model.backbone.image_sizes = [tuple(image["image"].shape[-2:]) for image in pictures]
    return model.outputs(pictures)


@every_recipe
@pytest.mark.parametrize("boxes", [((0.1, 0.2, 0.5, 0.7),), ()], ids=["boxes", "no_boxes"])
def test_training_gives_every_parameter_a_finite_gradient(name, boxes):
    model = build(name).train()
    losses = model([picture(64, 96, boxes), picture(96, 64, boxes)])
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_recipe
def test_detections_are_boxes_of_the_image_with_scores_and_classes(name):
    model = build(name).eval()
    with torch.no_grad():
        results = model(BATCH)
    for result, image in zip(results, BATCH, strict=True):
        found, (height, width) = result["instances"], image["image"].shape[-2:]
        assert len(found) > 0
        assert bool((found.pred_boxes.tensor >= 0).all())
        assert bool((found.pred_boxes.tensor <= torch.tensor([width, height, width, height])).all())
        assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
        assert bool(((found.pred_classes >= 0) & (found.pred_classes < NUM_CLASSES)).all())


@every_recipe
def test_half_precision_finds_on_a_padded_batch_what_single_precision_finds(name):
    model = build(name).to(torch.bfloat16).eval()
    with torch.no_grad():
        found = model.outputs(BATCH).predictions
        expected = model.float().outputs(BATCH).predictions
    distance = torch.cdist(found.logits.float(), expected.logits).amin(-1).median()
    assert (found.logits.dtype, found.boxes.dtype) == (torch.bfloat16, torch.float32)
    assert distance < WITHIN


@every_recipe
def test_saved_weights_make_the_same_model_again(name):
    model, file = build(name).eval(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = instantiate(lazy_config(name)).double().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        found, expected = (m.outputs(BATCH).predictions for m in (other, model))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.boxes, expected.boxes)


@every_recipe
def test_an_image_alone_gives_what_it_gives_in_a_padded_batch(name):
    model = build(name).eval()
    with torch.no_grad():
        batched = run(model, BATCH).predictions
        for image, one in enumerate(BATCH):
            alone = run(model, [one]).predictions
            rows = slice(None) if batched.valid is None else batched.valid[image]
            own = slice(None) if alone.valid is None else alone.valid[0]
            assert_close(batched.logits[image][rows], alone.logits[0][own], atol=1e-9, rtol=0)
            assert_close(batched.boxes[image][rows], alone.boxes[0][own], atol=1e-9, rtol=0)


@every_recipe
def test_an_image_of_one_token_a_level_trains_and_is_searched(name):
    model, batch = build(name), [picture(7, 5)]
    output = model.outputs(batch)
    assert set(output.pyramid.spatial_shapes) == {(1, 1)}
    if isinstance(model.queries, TopKQueries):
        assert output.predictions.logits.shape[1] == output.pyramid.num_tokens
    assert all(loss.isfinite() for loss in model.train()(batch).values())
    assert len(model.eval()(batch)[0]["instances"]) > 0


@every_recipe
def test_a_width_of_24_channels_works_or_is_refused_with_the_remedy(name):
    config = lazy_config(name, embed_dim=24)
    if config.tokenizer._target_ in (MultiScaleTokenizer, RowColumnTokenizer):
        with pytest.raises(ValueError, match="embed_dim is 24; give a multiple of 32"):
            instantiate(config)
    else:
        assert len(instantiate(config).eval()([picture(64, 96)])[0]["instances"]) > 0


@pytest.fixture
def yaml_backbones(monkeypatch):
    """Register the stub for yaml: with all its maps, and with the coarsest alone."""
    for stub, count in NUM_MAPS.items():
        make = partial(make_stub, num_maps=count)
        monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, f"build_{stub}_stub", make)


def make_stub(cfg, input_shape, *, num_maps):
    return PatchBackbone(num_maps=num_maps)


@every_recipe
def test_the_yaml_twin_is_the_same_model(name, yaml_backbones):
    cfg = get_cfg()
    add_detr_config(cfg)
    config = lazy_config(name)
    stub = "single_scale" if config.backbone.get("num_maps") == 1 else "multi_scale"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DEVICE = name, f"build_{stub}_stub", "cpu"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
    for key, value in options_of(name).items():
        cfg.MODEL.DETR[key.upper()] = value
    models = []
    for make in (lambda: build_model(cfg), lambda: instantiate(config)):
        torch.manual_seed(2)
        models.append(make().eval())
    first, second = (model.state_dict() for model in models)
    assert list(first) == list(second)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    with torch.no_grad():
        found, expected = (model.outputs(BATCH).predictions for model in models)
    assert torch.equal(found.logits, expected.logits)
    assert models[0].num_classes == NUM_CLASSES
