"""How much of a model a call runs: decoder layers and queries, besides tokens; and what a training step draws."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sparse_detr.budget import check_fits, checked_budget
from sparse_detr.errors import UserError
from sparse_detr.inference import optimize
from sparse_detr.modeling.effort import Effort, ElasticEffort, effort_of_call, parse_effort
from sparse_detr.modeling.selection import LevelBudget
from sparse_detr.structures import Queries
from tests.modeling.tiny import SIZES, build, picture

PICTURES = [picture(64, 96), picture(48, 40)]
LAYERS, QUERIES = SIZES["decoder_layers"], SIZES["num_queries"]


def test_a_text_names_tokens_decoder_layers_and_queries():
    assert parse_effort("0.3") == Effort(tokens=0.3)
    assert parse_effort("decoder:2") == Effort(decoder_layers=2)
    assert parse_effort("0.3+decoder:2+queries:50") == Effort(tokens=0.3, decoder_layers=2, num_queries=50)
    levels = parse_effort("queries:50 + levels:0.1,0.5,1")
    assert levels == Effort(tokens=LevelBudget(shares=(0.1, 0.5, 1)), num_queries=50)
    assert str(levels) == "levels:0.1,0.5,1+queries:50"
    assert parse_effort(str(levels)) == levels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.3+0.5", "says tokens twice"),
        ("decoder:2+decoder:3", "says decoder_layers twice"),
        ("decoder:two", "'decoder:two' has no whole number"),
        ("queries:0", "num_queries must be a whole number above 0, got 0"),
        ("0.3+layers:2", "'layers:2' is no budget"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        effort_of_call(text)


@pytest.mark.parametrize("name", ["sparse", "dino", "imfa", "detr"])
def test_a_decoder_that_stops_early_gives_the_predictions_of_that_layer(name):
    model = build(name).eval()
    whole, early = model.outputs(PICTURES), model.outputs(PICTURES, Effort(decoder_layers=1))
    assert [group.name for group in early.groups if group.name.startswith("decoder")] == ["decoder_0"]
    assert_close(early.predictions.boxes, whole.groups[0].boxes)
    assert_close(early.predictions.logits, whole.groups[0].logits)


def test_fewer_queries_are_the_best_proposals():
    """Queries attend to each other, so fewer give other predictions, from the same references."""
    model = build("sparse").eval()
    tokens = model.tokenize(torch.randn(1, 3, 64, 64, dtype=torch.float64), None)
    encoded = model.encode(tokens)
    whole, few = model.query(encoded), model.query(encoded, num_queries=4)
    assert few.content.shape[1] == few.position.shape[1] == 4
    assert torch.equal(few.reference_points, whole.reference_points[:, :4])
    assert model.outputs(PICTURES, "queries:4").predictions.boxes.shape[1] == 4
    assert sum(len(found["instances"]) for found in model(PICTURES, "queries:1")) == 2 * 5  # one box for each class


def test_every_image_may_have_its_own_number_of_queries():
    """Two of three queries of the first image count, and all three of the second."""
    queries = Queries(content=torch.zeros(2, 5, 1), position=None, reference_points=torch.zeros(2, 5, 4))
    mixed = queries.first([2, 3])
    assert mixed.content.shape == (2, 3, 1)
    assert mixed.valid.int().tolist() == [[1, 1, 0], [1, 1, 1]]
    assert queries.first([3, 3]).valid is None
    assert queries.first(9).content.shape[1] == 5
    with pytest.raises(ValueError, match="there are 3 numbers of queries for 2 images; give one for every image"):
        queries.first([3, 3, 3])


def test_an_effort_takes_whole_numbers_of_numpy_and_no_empty_list():
    assert Effort(decoder_layers=np.int64(2)) == Effort(decoder_layers=2)
    with pytest.raises(ValueError, match="num_queries is an empty list; give one number for every image"):
        Effort(num_queries=[])


@pytest.mark.parametrize("name", ["sparse", "sparse_dino", "focus"])
def test_an_image_with_fewer_queries_gets_the_losses_that_it_gets_alone(name):
    """Two boxes each, so every loss of detections is the mean of those of the images alone."""
    options = {} if name == "sparse" else {"denoising_queries": 0}
    model = build(name, **options)
    model.backbone.image_sizes = [tuple(image["image"].shape[-2:]) for image in PICTURES]
    batch = model.losses(PICTURES, Effort(num_queries=[3, 8]))
    model.backbone.image_sizes = None
    alone = [model.losses([image], Effort(num_queries=n)) for image, n in zip(PICTURES, (3, 8), strict=True)]
    for key in ("loss_class", "loss_bbox", "loss_giou", "loss_class_0", "loss_class_enc"):
        assert_close(batch[key], (alone[0][key] + alone[1][key]) / 2, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["sparse", "dino"])
def test_a_layer_that_is_not_run_gets_no_gradient(name):
    model = build(name)
    losses = model.losses(PICTURES, Effort(decoder_layers=1))
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.decoder.layers[1].parameters())
    assert all(p.grad is not None for p in model.decoder.layers[0].parameters())
    assert not {"loss_class_0", "loss_dn_class_0"} & set(losses)


@pytest.mark.parametrize("name", ["sparse", "pnp", "dino"])
def test_the_inference_form_takes_the_same_efforts(name):
    model = build(name).eval()
    effort = "decoder:1" if name == "pnp" else "decoder:1+queries:5"
    for found, expected in zip(optimize(model)(PICTURES, effort), model(PICTURES, effort), strict=True):
        assert_close(found["instances"].scores, expected["instances"].scores)


def test_the_flow_alone_takes_an_effort():
    model = build("sparse").eval()
    logits, boxes = model.transformer()(torch.randn(1, 3, 64, 64, dtype=torch.float64), None, "0.3+queries:4")
    assert logits.shape[1] == boxes.shape[1] == 4


@pytest.mark.parametrize(
    ("name", "effort", "message"),
    [
        ("sparse", "decoder:3", f"decoder_layers is 3, but the decoder has {LAYERS}; give at most that"),
        ("sparse", "queries:13", f"num_queries is 13, but the model has {QUERIES}; give at most that"),
        ("one_stage", "queries:4", "the queries of this model are learned and have no ranking"),
        ("anchor", "queries:4", "the queries of this model are learned and have no ranking"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, effort, message):
    model = build(name)
    with pytest.raises(ValueError, match=message):
        model.outputs(PICTURES, effort)
    with pytest.raises(UserError, match=f"--budget is {effort}.*: .*{message}"):
        check_fits("--budget", effort, model)


def test_a_command_line_takes_an_effort_and_a_dense_model_its_decoder_layers():
    assert checked_budget("--budget", "0.3+decoder:2") == "0.3+decoder:2"
    assert checked_budget("--budget", "0.30") == 0.3
    with pytest.raises(UserError, match="--budget: 'decoder:' has no whole number"):
        checked_budget("--budget", "decoder:")
    for value in (torch.tensor(0.3), LevelBudget):  # both have a `select`
        with pytest.raises(UserError, match="is no share; give a number above 0"):
            checked_budget("budget", value)
    check_fits("--budget", "decoder:1", build("dino"))
    with pytest.raises(UserError, match="this model has a dense encoder"):
        check_fits("--budget", "0.5+decoder:1", build("dino"))


def test_queries_are_drawn_for_every_image_and_layers_for_the_step():
    effort = ElasticEffort(layer_range=(2, 6), query_range=(10, 100))
    drawn = [effort.draw(4) for _ in range(40)]
    for numbers in (one.num_queries for one in drawn):
        assert sorted(numbers)[0] == 10
        assert sorted(numbers)[-1] == 100
    assert len({number for one in drawn for number in one.num_queries}) > 20
    assert len({one.decoder_layers for one in drawn}) == 1  # without another iteration, the same draw


def test_layers_depend_on_the_iteration_alone():
    def layers(seed):
        torch.manual_seed(seed)
        efforts = (ElasticEffort(layer_range=(1, 6), iteration=lambda i=i: i) for i in range(300))
        return [effort.draw(2).decoder_layers for effort in efforts]

    drawn = layers(0)
    assert drawn == layers(1)
    assert set(drawn) == set(range(1, 7))
    assert drawn.count(1) / 300 == pytest.approx(1 / 3 + 1 / 18, abs=0.1)
    assert drawn.count(6) / 300 == pytest.approx(1 / 3 + 1 / 18, abs=0.1)


def test_a_training_step_draws_and_inference_does_not():
    model = build("sparse", training_decoder_layers=(1, 1), training_num_queries=(2, 12))
    assert "loss_class_0" not in model(PICTURES)
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].valid))
    torch.manual_seed(0)
    for _ in range(4):
        model(PICTURES)
    assert {tuple(valid.sum(1).tolist()) for valid in seen if valid is not None}
    assert "loss_class_0" in model(PICTURES, 0.5)
    assert model.eval().outputs(PICTURES).predictions.name == "decoder_1"
    assert "loss_class_0" in model.losses(PICTURES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_decoder_layers": (1, 5)}, f"decoder_layers is 5, but the decoder has {LAYERS}"),
        ({"training_decoder_layers": (2, 1)}, "give two whole numbers above 0, the smaller first"),
        ({"training_num_queries": (1.5, 4)}, "give two whole numbers above 0, the smaller first"),
        ({"training_num_queries": (2, 100)}, f"num_queries is 100, but the model has {QUERIES}"),
        ({"training_num_queries": (2,)}, "training_num_queries must be the two ends of a range"),
        (
            {"training_keep_ratios": (0.1, 1.0), "training_level_shares": [[0.1, 0.5], [0.5, 1.0]]},
            "training_level_shares has 2 ranges, but the model 4 levels; give one for every level",
        ),
        ({"training_level_shares": [[0.1, 1.0]]}, "training_level_shares needs training_keep_ratios"),
        ({"distillation_weight": 1.0, "behavior": "released"}, "use behavior exact"),
    ],
)
def test_a_training_that_a_model_cannot_have_is_refused_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        build("sparse", **options)
