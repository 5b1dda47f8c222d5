"""Budgets as arguments of a call: every image keeps its own number of tokens, and pays for no other."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.inference import optimize
from tests.modeling.tiny import build, picture

PICTURES = [picture(64, 96), picture(96, 64, seed=1), picture(40, 72, seed=2)]
BUDGETS = [0.1, "levels:0.1,0.5,1,1", "mass:0.3"]
SELECTIVE = ["sparse", "objectness", "sparse_dino", "focus", "focus_two_stage", "pnp"]


def on_levels(name):
    return BUDGETS if name != "pnp" else [0.1, "levels:0.5", "mass:0.3"]


def run(model, pictures, budget):
    with torch.no_grad():
        return model.outputs(pictures, budget=budget)


@pytest.mark.parametrize("name", SELECTIVE)
def test_every_image_of_a_batch_with_three_budgets_gives_what_it_gives_alone(name):
    model = build(name).eval()
    batch = run(model, PICTURES, on_levels(name))
    for image, budget in enumerate(on_levels(name)):
        alone = run(model, PICTURES[image : image + 1], budget)
        assert alone.selection.counts[0] == batch.selection.counts[image]
        own = alone.predictions.logits.shape[1]
        assert_close(batch.predictions.logits[image, :own], alone.predictions.logits[0], atol=1e-9, rtol=0)
        assert_close(batch.predictions.boxes[image, :own], alone.predictions.boxes[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_the_inference_form_refines_the_kept_rows_of_every_image_and_no_others(name):
    model = optimize(build(name).eval())
    rows = []
    for layer in model.encoder.layers:
        layer.ffn.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[:-1].numel()))
    output = run(model, PICTURES, BUDGETS)
    layers = [output.selection.at_layer(layer).counts for layer in range(3)]
    assert rows == [int(counts.sum()) for counts in layers]
    assert len(set(layers[0].tolist())) == 3


@pytest.mark.parametrize("name", SELECTIVE)
def test_the_inference_form_gives_the_same_with_every_budget(name):
    model = build(name).eval()
    form = optimize(model)
    for budget in [*on_levels(name), on_levels(name)]:
        found, expected = run(form, PICTURES, budget), run(model, PICTURES, budget)
        assert torch.equal(found.selection.keep, expected.selection.keep)
        assert_close(found.predictions.logits, expected.predictions.logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", SELECTIVE)
def test_losses_with_a_budget_of_every_image_are_finite_and_reach_the_scorer(name):
    model = build(name).train()
    losses = model(PICTURES, budget=on_levels(name))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    scorer = [p.grad for p in model.selector.scorer.parameters() if p.requires_grad]
    assert any(grad is not None and grad.abs().sum() > 0 for grad in scorer)


def test_a_dense_model_takes_all_tokens_only():
    model = build("topk").eval()
    for everything in (1, "1", "levels:1,1,1,1"):
        run(model, PICTURES[:1], everything)
    for budget, named in (("0.5", "0.5 of the tokens"), ("mass:0.9", "mass:0.9")):
        with pytest.raises(ValueError, match=f"this model has a dense encoder; it cannot keep {named}"):
            run(model, PICTURES[:1], budget)
