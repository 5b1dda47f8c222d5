import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.analysis import cost
from sparse_detr.modeling.selection import EvenBudget
from sparse_detr.recipes import deformable_detr_topk, sparse_detr
from tests.modeling.tiny import SIZES, patch_backbone


def encoder_gigaflops(recipe, **options):
    model = instantiate(recipe(backbone=patch_backbone(), **{**SIZES, **options}))
    return cost.gigaflops(model, torch.zeros(3, 64, 96, dtype=torch.uint8))["encoder"]


def test_actions_run_on_every_input_in_turn_and_the_first_input_is_not_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    calls = []
    actions = {name: lambda item, name=name: calls.append((name, item)) for name in "ab"}
    assert cost.seconds_in_turn(actions, ["warm", "x", "y"]) == {"a": 1, "b": 1}
    assert calls == [("a", "warm"), ("b", "warm"), ("b", "x"), ("a", "x"), ("a", "y"), ("b", "y")]


def test_the_encoders_flops_grow_by_the_same_amount_with_every_layer():
    none, one, two = (encoder_gigaflops(deformable_detr_topk, encoder_layers=count) for count in (0, 1, 2))
    assert none == 0
    assert two == pytest.approx(2 * one)


def test_the_selector_counts_for_the_encoder():
    blind, learned = (encoder_gigaflops(sparse_detr, scorer=name) for name in ("random", "attention_map"))
    assert 0 < blind < learned


@pytest.mark.parametrize("budget", [0.5, EvenBudget(keep_ratio=0.5)])
def test_a_budget_of_the_call_costs_what_it_costs_as_the_models_own(budget):
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    small, half = (instantiate(sparse_detr(backbone=patch_backbone(), keep_ratio=r, **SIZES)) for r in (0.1, 0.5))
    assert cost.gigaflops(small, image, budget) == cost.gigaflops(half, image)
    assert cost.gigaflops(small, image)["encoder"] < cost.gigaflops(half, image)["encoder"]


def test_a_layer_of_a_dense_encoder_costs_what_its_formula_says():
    """Per token: offsets and weights of the samples, values, output, feed-forward, samples, two norms."""
    dim, hidden, levels, points = SIZES["embed_dim"], SIZES["feedforward_dim"], 4, SIZES["num_points"]
    samples = SIZES["num_heads"] * levels * points
    token = 3 * dim * samples + 2 * dim**2 + 2 * dim * hidden + 4 * dim * levels * points + 2 * 5 * dim
    tokens = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert 1e9 * encoder_gigaflops(deformable_detr_topk, encoder_layers=1) == pytest.approx(tokens * token)
