"""The detector as a meta-architecture of Detectron2, with the model of every recipe."""

import copy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.export import TracingAdapter
from detectron2.structures import Instances
from torch.testing import assert_close

from sparse_detr.layers import MultiScaleDeformableAttention
from sparse_detr.modeling.decoder import NoAttentionMap
from sparse_detr.modeling.detector import GeneralizedDETR, TopKDetections
from sparse_detr.modeling.queries import TopKQueries
from tests.modeling.tiny import MODELS, NUM_CLASSES, SIZES, build, patch_backbone, picture

BATCH = [picture(96, 64), picture(70, 125, boxes=((0.1, 0.1, 0.3, 0.9),))]
every_model = pytest.mark.parametrize("name", MODELS)
# The random scorer draws new scores in every run.
repeatable_model = pytest.mark.parametrize("name", [name for name in MODELS if name != "random"])
both_behaviors = pytest.mark.parametrize("behavior", ["exact", "released"])


@every_model
@both_behaviors
def test_training_gives_finite_scalar_losses_in_the_precision_of_the_model(name, behavior):
    model = build(name, dtype=torch.float32, behavior=behavior).train()
    losses = model(BATCH)
    assert {"loss_class", "loss_bbox", "loss_giou", "loss_class_0"} <= set(losses)
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.isfinite()
        assert loss.dtype == torch.float32


@every_model
@both_behaviors
def test_inference_gives_instances_of_the_requested_size(name, behavior):
    model = build(name, dtype=torch.float32, behavior=behavior).eval()
    asked = [{**BATCH[0], "height": 480, "width": 320}, {"image": BATCH[1]["image"]}]
    with torch.no_grad():
        results = model(asked)
    for result, size in zip(results, [(480, 320), (70, 125)], strict=True):
        found = result["instances"]
        assert found.image_size == size
        assert 0 < len(found) <= 100
        assert found.has("scores")
        boxes = found.pred_boxes.tensor
        assert boxes.min() >= 0
        assert bool((boxes <= torch.tensor([size[1], size[0], size[1], size[0]])).all())
        if isinstance(model.postprocess, TopKDetections):  # others keep the order of the queries
            assert bool((found.scores.diff() <= 0).all())
        assert bool(((found.pred_classes >= 0) & (found.pred_classes < NUM_CLASSES)).all())


def test_detections_scale_with_the_requested_size():
    model = build("sparse").eval()
    image = BATCH[0]["image"]
    first, second = model([{"image": image}])[0], model([{"image": image, "height": 960, "width": 128}])[0]
    scale = torch.tensor([2.0, 10.0, 2.0, 10.0])
    assert_close(second["instances"].pred_boxes.tensor, first["instances"].pred_boxes.tensor * scale)
    assert torch.equal(first["instances"].scores, second["instances"].scores)


def test_forward_is_outputs_then_detections():
    model = build("sparse").eval()
    output = model.outputs(BATCH)
    for result, expected in zip(model(BATCH), model.detections(output, BATCH), strict=True):
        assert torch.equal(result["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor)


def test_losses_are_the_same_in_both_modes_without_dropout():
    model = build("sparse")
    training, inference = model.train()(BATCH), model.eval().losses(BATCH)
    assert {k: v.item() for k, v in training.items()} == {k: v.item() for k, v in inference.items()}


@pytest.mark.parametrize("training", [True, False])
def test_inputs_are_not_changed(training):
    batch = [{**image, "height": 33, "width": 44} for image in BATCH]
    before = copy.deepcopy(batch)
    build("sparse").train(training)(batch)
    for image, old in zip(batch, before, strict=True):
        assert set(image) == set(old)
        assert torch.equal(image["image"], old["image"])
        assert torch.equal(image["instances"].gt_boxes.tensor, old["instances"].gt_boxes.tensor)
        assert torch.equal(image["instances"].gt_classes, old["instances"].gt_classes)
        assert (image["height"], image["width"]) == (33, 44)


@every_model
def test_a_batch_without_any_true_box_trains(name):
    losses = build(name).losses([picture(64, 64, boxes=()), picture(32, 96, boxes=())])
    assert all(loss.isfinite() for loss in losses.values())
    assert all(losses[key].item() == 0 for key in losses if "bbox" in key or "giou" in key)
    assert losses["loss_class"].item() > 0


@every_model
@both_behaviors
def test_one_token_a_level_trains_and_detects(name, behavior):
    """The image has four tokens, or one at a single scale; there are twelve queries."""
    model, batch = build(name, behavior=behavior), [picture(7, 5)]
    output = model.outputs(batch)
    assert set(output.pyramid.spatial_shapes) == {(1, 1)}
    assert output.predictions.logits.shape[1] == (4 if isinstance(model.queries, TopKQueries) else 12)
    assert all(loss.isfinite() for loss in model.losses(batch).values())
    assert len(model.eval()(batch)[0]["instances"]) > 0


@every_model
def test_more_true_boxes_than_queries_train(name):
    boxes = [(0.02 * i, 0.1, 0.02 * i + 0.3, 0.6) for i in range(30)]
    losses = build(name).losses([picture(64, 64, boxes=boxes), picture(48, 48)])
    assert all(loss.isfinite() for loss in losses.values())


def test_a_single_level_works():
    backbone = patch_backbone()
    coarse = backbone._replace(in_features=("map32",), in_channels=(10,), strides=(32,))
    for name in ("one_stage", "sparse"):
        model = build(name, backbone=coarse, num_levels=1)
        assert model.outputs(BATCH).pyramid.spatial_shapes == ((3, 4),)
        assert all(loss.isfinite() for loss in model.losses(BATCH).values())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated")
def test_the_detector_is_traced_through_the_adapter_of_detectron2():
    model = build("sparse", dtype=torch.float32).eval()
    image = BATCH[0]["image"].float()
    adapter = TracingAdapter(
        model, [{"image": image}], inference_func=lambda model, inputs: model.detect(inputs)
    ).eval()
    with torch.no_grad():
        traced = torch.jit.trace(adapter, (image,), check_trace=False)
        assert_close(traced(image), adapter(image))


@every_model
def test_samples_are_kept_only_where_an_attention_map_is_needed(name, monkeypatch):
    """Everything else runs the fused kernel, which keeps neither locations nor weights."""
    calls = []
    original = MultiScaleDeformableAttention.sample
    monkeypatch.setattr(
        MultiScaleDeformableAttention, "sample", lambda *arguments: calls.append(1) or original(*arguments)
    )
    model = build(name)
    model.detect(BATCH)
    assert not calls
    model.losses(BATCH)
    assert len(calls) == SIZES["decoder_layers"] * model.supervision.needs_attention_map


@every_model
def test_outputs_describe_the_whole_run(name):
    model = build(name)
    output = model.outputs(BATCH)
    names = [group.name for group in output.groups]
    assert names[:2] == ["decoder_0", "decoder_1"]
    assert output.predictions is output.groups[len(model.decoder.layers) - 1]
    assert len({group.suffix for group in output.groups}) == len(names)
    assert output.image_sizes == ((96, 64), (70, 125))
    tokens = (2, output.pyramid.num_tokens)
    assert output.selection.keep.shape == tokens
    assert (output.token_scores is None) == (not hasattr(model.selector, "scorer"))
    without_map = isinstance(model.attention_map, NoAttentionMap)
    assert output.attention_map is None if without_map else output.attention_map.shape == tokens
    assert model.outputs(BATCH, attention_map=False).attention_map is None
    assert ("proposals" in names) == (model.proposal_head is not None)
    assert ("backbone" in names) == (name == "objectness")
    assert names.count("encoder_0") == names.count("encoder_1") == bool(len(model.encoder_heads))


def test_true_boxes_are_shares_of_the_unpadded_image():
    model = build("one_stage")
    (target,) = model.targets([picture(50, 200, boxes=((0.1, 0.2, 0.5, 0.8),))])
    assert target.boxes.tolist() == [pytest.approx([0.3, 0.5, 0.4, 0.6])]


@pytest.mark.parametrize(("behavior", "supervised"), [("exact", False), ("released", True)])
def test_rows_that_fill_the_batch_are_supervised_with_the_released_behavior_only(behavior, supervised):
    model = build("sparse", behavior=behavior)
    output = model.outputs([picture(128, 128), picture(32, 32)])
    first, second = output.selection.counts.tolist()
    group = next(group for group in output.groups if group.name == "encoder_0")
    assert group.logits.shape[:2] == (2, first)
    assert second < first
    assert group.valid is None if supervised else group.valid.sum(1).tolist() == [first, second]


def test_a_budget_in_the_call_is_the_number_of_tokens_of_that_call():
    model = build("sparse").eval()
    total = torch.tensor(model.outputs(BATCH).pyramid.valid_counts)
    for ratio in (0.1, 0.5, 1.0):
        counts = model.outputs(BATCH, budget=ratio).selection.counts
        assert counts.tolist() == torch.minimum((total * ratio).long() + 1, total).tolist()
    assert model.keep_ratio == 0.3
    with pytest.raises(ValueError, match="keep_ratio must be above 0 and at most 1, got 1.5"):
        model(BATCH, budget=1.5)
    with pytest.raises(ValueError, match="dense encoder"):
        build("topk").eval()(BATCH, budget=0.5)


def test_inference_keep_ratio_is_used_in_eval_mode_only():
    model = build("sparse", keep_ratio=0.5, inference_keep_ratio=0.2)
    assert model.train().keep_ratio == 0.5
    assert model.eval().keep_ratio == 0.2


def test_keeping_every_token_equals_the_dense_model_with_the_same_weights():
    sparse, dense = build("sparse", keep_ratio=1.0), build("topk", encoder_auxiliary_loss=True)
    own = {key: value for key, value in sparse.state_dict().items() if not key.startswith("selector.")}
    assert set(own) == set(dense.state_dict())
    dense.load_state_dict(own)
    first, second = sparse.outputs(BATCH), dense.outputs(BATCH)
    assert_close(first.predictions.boxes, second.predictions.boxes, atol=1e-10, rtol=0)
    assert_close(first.predictions.logits, second.predictions.logits, atol=1e-10, rtol=0)
    losses, expected = sparse.losses(BATCH), dense.losses(BATCH)
    assert set(losses) - set(expected) == {"loss_token_score"}
    for key, loss in expected.items():
        assert_close(losses[key], loss, atol=1e-8, rtol=0)


@every_model
def test_a_state_dict_restores_the_model(name):
    model, other = build(name, seed=1), build(name, seed=2)
    assert other.load_state_dict(model.state_dict()) == ([], [])
    torch.manual_seed(0)  # of the random scorer
    expected = model.outputs(BATCH).predictions.logits
    torch.manual_seed(0)
    assert torch.equal(other.outputs(BATCH).predictions.logits, expected)


def seeded_losses(model):
    """Return the losses of the batch, always with the same noise in denoising queries."""
    torch.manual_seed(0)
    return model.losses(BATCH)


@repeatable_model
def test_single_precision_agrees_with_double(name):
    double = build(name)
    single, expected = copy.deepcopy(double).float(), seeded_losses(double)
    for key, loss in seeded_losses(single).items():
        assert loss.item() == pytest.approx(expected[key].item(), rel=1e-3), key


@repeatable_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_the_cpu_gives_losses_within_five_percent_and_finite_gradients(name, dtype, monkeypatch):
    """The rankings are fixed: another order of tokens would make a larger difference than rounding."""
    model, rankings = build(name, dtype=torch.float32), []
    monkeypatch.setattr(torch.Tensor, "topk", recorded_topk(rankings))
    expected = seeded_losses(model)
    monkeypatch.setattr(torch.Tensor, "topk", replayed_topk(rankings))
    with torch.autocast("cpu", dtype):
        losses = seeded_losses(model)
    assert not rankings
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[key].item(), rel=0.05), key
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def recorded_topk(rankings):
    """Make a `Tensor.topk` that stores its indices in a list."""
    topk = torch.Tensor.topk

    def record(x, *arguments, **options):
        result = topk(x, *arguments, **options)
        rankings.append(result.indices)
        return result

    return record


def replayed_topk(rankings):
    """Make a `Tensor.topk` that chooses the stored indices, call by call."""

    def replay(x, count, dim=-1):
        indices = rankings.pop(0)
        return torch.return_types.topk((x.gather(dim, indices), indices))

    return replay


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_the_cpu_detects(name, dtype):
    model = build(name, dtype=torch.float32).eval()
    with torch.autocast("cpu", dtype), torch.no_grad():
        results = model(BATCH)
    assert all(len(result["instances"]) for result in results)
    assert all(result["instances"].scores.isfinite().all() for result in results)


@every_model
def test_boxes_keep_single_precision_under_autocast(name):
    """In bfloat16 a coordinate would be a multiple of 1/256 of the image."""
    model = build(name, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert all(group.boxes.dtype == torch.float32 for group in model.outputs(BATCH).groups)


@pytest.mark.parametrize("options", [{}, {"class_channels": [0, 2, 4]}])
def test_a_class_that_the_model_does_not_have_is_refused_with_both_numbers(options):
    known = len(options.get("class_channels", range(NUM_CLASSES)))
    image = picture(64, 64)
    image["instances"].gt_classes[0] = known
    with pytest.raises(ValueError, match=f"class {known} of a true box is not below the {known} classes"):
        build("sparse", **options).losses([image])


@every_model
def test_a_model_is_built_on_the_meta_device_without_memory(name):
    recipe, options = MODELS[name]
    with torch.device("meta"):
        model = instantiate(recipe(**{"backbone": patch_backbone(), **SIZES, **options}))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert set(model.state_dict()) == set(build(name).state_dict())


def test_a_model_is_a_plain_module_with_a_device():
    model = build("one_stage")
    assert isinstance(model, GeneralizedDETR)
    assert model.device == torch.device("cpu")
    assert model.num_classes == NUM_CLASSES
    assert "pixel_mean" not in model.state_dict()
    assert isinstance(model.eval()(BATCH)[0]["instances"], Instances)
