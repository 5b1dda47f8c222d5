"""Which loss trains which part (the table of the specification)."""

import pytest

from tests.modeling.tiny import MODELS, build, picture

PARTS = (
    "backbone",
    "tokenizer.projections",
    "tokenizer.level_embed",
    "projection",
    "selector",
    "encoder.layers.0",
    "encoder.layers.1",
    "encoder.layers.2",
    "queries",
    "decoder.layers",
    "decoder_heads",
    "proposal_head",
    "encoder_heads.0",
    "encoder_heads.1",
)
ENCODER = {"encoder.layers.0", "encoder.layers.1", "encoder.layers.2"}
TOKENS = {"backbone", "tokenizer.projections", "tokenizer.level_embed"}
REACHED = {
    "decoder": TOKENS | ENCODER | {"queries", "decoder.layers", "decoder_heads"},
    "proposals": TOKENS | ENCODER | {"projection", "proposal_head"},
    "encoder_0": TOKENS | {"encoder.layers.0", "encoder_heads.0"},
    "encoder_1": TOKENS | {"encoder.layers.0", "encoder.layers.1", "encoder_heads.1"},
    "token_score": TOKENS | {"projection", "selector"},
    "foreground": TOKENS | {"projection", "selector"},
}
SUFFIXES = {"decoder": ("", "_0"), "proposals": ("_enc",), "encoder_0": ("_enc_0",), "encoder_1": ("_enc_1",)}
BATCH = [picture(64, 96), picture(96, 64, boxes=((0.2, 0.2, 0.6, 0.6),))]


def losses_of(losses, kind):
    if kind in ("token_score", "foreground"):
        return [losses[f"loss_{kind}"]]
    return [losses[f"loss_{name}{suffix}"] for name in ("class", "bbox", "giou") for suffix in SUFFIXES[kind]]


def reached_parts(model, losses):
    """Return the parts in which some parameter gets a gradient that is not zero."""
    model.zero_grad()
    sum(losses).backward()
    touched = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    return {part for part in PARTS if any(name == part or name.startswith(part + ".") for name in touched)}


@pytest.mark.parametrize("kind", [kind for kind in REACHED if kind != "foreground"])
@pytest.mark.parametrize("behavior", ["exact", "released"])
def test_every_loss_of_sparse_detr_reaches_the_parts_it_should_and_no_other(kind, behavior):
    model = build("sparse", behavior=behavior)
    assert reached_parts(model, losses_of(model.losses(BATCH), kind)) == REACHED[kind]


@pytest.mark.parametrize("kind", ["decoder", "proposals", "foreground"])
@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("name", ["focus", "focus_two_stage", "focus_one_stage"])
def test_every_loss_of_focus_detr_reaches_the_parts_it_should_and_no_other(name, kind, behavior):
    """Scores and classes choose the tokens, but get no gradient from the memory.

    A hundred queries are enough for some to start from encoded tokens.
    """
    model = build(name, behavior=behavior, num_queries=100)
    assert reached_parts(model, losses_of(model.losses(BATCH), kind)) == REACHED[kind]


def test_the_objectness_loss_trains_the_scorer_and_the_parts_before_it():
    model = build("objectness")
    losses = model.losses(BATCH)
    scorer = [losses[f"loss_{name}_backbone"] for name in ("class", "bbox", "giou")]
    assert reached_parts(model, scorer) == TOKENS | {"projection", "selector"}
    assert "loss_token_score" not in losses


@pytest.mark.parametrize("boxes", [((0.1, 0.2, 0.5, 0.7),), ()], ids=["boxes", "no_boxes"])
@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_part_of_the_graph_with_and_without_true_boxes(name, behavior, boxes):
    """A parameter that is not in the graph makes data-parallel training hang."""
    model = build(name, behavior=behavior)
    sum(model.losses([picture(64, 96, boxes), picture(96, 64, boxes)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_parameter_learns_something():
    model = build("sparse")
    sum(model.losses(BATCH).values()).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []


def test_sparse_detr_has_a_loss_for_every_supervised_layer():
    decoder_layers, encoder_layers = 6, 6
    model = build("sparse", decoder_layers=decoder_layers, encoder_layers=encoder_layers)
    losses = model.losses(BATCH[:1])
    assert len(losses) == 3 * decoder_layers + 3 + 3 * (encoder_layers - 1) + 1 == 37
