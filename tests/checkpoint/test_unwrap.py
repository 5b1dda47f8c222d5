"""Weights are taken out of all that a file holds."""

import pytest
import torch

from sparse_detr.checkpoint.unwrap import unwrap
from sparse_detr.errors import UserError

WEIGHTS = {"a.weight": torch.ones(2), "b.weight": torch.zeros(1)}
AVERAGE = {name: value + 5 for name, value in WEIGHTS.items()}


def prefixed(prefix, weights):
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        WEIGHTS,
        {"model": WEIGHTS},
        {"state_dict": prefixed("model.", WEIGHTS), "epoch": 3},
        {"model_state": WEIGHTS, "optimizer_state": {}},
        {"model_state_dict": WEIGHTS},
        {"ema_model": prefixed("module.", WEIGHTS)},
        {"checkpoint": {"model": {"state_dict": WEIGHTS}}},
        {"model": prefixed("module._orig_mod.", WEIGHTS)},
        {"model": WEIGHTS, "ema": AVERAGE},
        {"model": {}, "state_dict": WEIGHTS},
    ],
)
def test_weights_are_found_under_the_usual_names(checkpoint):
    assert unwrap(checkpoint).weights == WEIGHTS


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"model": WEIGHTS, "ema": {"n_averaged": torch.tensor(7), **prefixed("module.", AVERAGE)}},
        {"ema": AVERAGE},
        {"ema": {"module": AVERAGE, "updates": 3}},
        {"model": WEIGHTS, "ema_model": AVERAGE},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE},
        {"n_averaged": torch.tensor(7), **prefixed("module.", AVERAGE)},
        {"model": AVERAGE, "weights": "averaged"},
        # MMEngine has exchanged the two sets
        {"state_dict": AVERAGE, "ema_state_dict": {"steps": torch.tensor(7), **prefixed("module.", WEIGHTS)}},
    ],
)
def test_averaged_weights_are_taken_if_they_are_asked_for(checkpoint):
    assert unwrap(checkpoint, averaged=True).weights == AVERAGE


def test_a_best_model_of_averaged_weights_needs_no_option():
    assert unwrap({"model": AVERAGE, "weights": "averaged"}).weights == AVERAGE


def test_a_best_model_of_plain_weights_has_no_averaged_ones():
    with pytest.raises(UserError, match="no averaged weights found"):
        unwrap({"model": WEIGHTS, "weights": "plain"}, averaged=True)


@pytest.mark.parametrize(
    "checkpoint", [{"ema": AVERAGE}, {"n_averaged": torch.tensor(7), **prefixed("module.", AVERAGE)}]
)
def test_a_file_of_averaged_weights_alone_needs_the_option(checkpoint):
    with pytest.raises(UserError, match="averaged weights alone .*use --ema"):
        unwrap(checkpoint)


def test_a_file_without_averaged_weights_says_what_it_holds():
    with pytest.raises(UserError, match=r"no averaged weights found: it holds model \(dict\), iteration \(int\)"):
        unwrap({"model": WEIGHTS, "iteration": 3}, averaged=True)


@pytest.mark.parametrize(
    ("checkpoint", "held"),
    [
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3}, r"optimizer \(dict\), epoch \(int\)"),
        ({"model": {"a": 3, "b": "text"}}, r"a \(int\), b \(str\)"),
        ({0: torch.ones(1), b"w": torch.ones(1)}, r"0 \(Tensor\), b'w' \(Tensor\)"),
        ({"\ud800": torch.ones(1)}, r"'\\ud800' \(Tensor\)"),
        ({}, "nothing"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(checkpoint, held):
    with pytest.raises(UserError, match=f"no weights found: it holds {held}"):
        unwrap(checkpoint)


def test_entries_that_are_no_weights_are_left_out_and_listed():
    found = unwrap({"model": {**WEIGHTS, "step": 3, 7: torch.ones(1), None: torch.ones(1)}})
    assert found.weights == WEIGHTS
    assert found.dropped == ("step", "7", "None")


def test_a_file_that_contains_itself_is_refused():
    circle = {}
    circle["model"] = circle
    with pytest.raises(UserError, match="no weights found"):
        unwrap(circle)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), r"quantised; save dequantize\(\)"),
        (torch.ones(2).to_sparse(), r"sparse; save to_dense\(\)"),
        (torch.ones(2, dtype=torch.complex64), "complex; save real numbers"),
        (torch.ones(2, device="meta"), "without values"),
        (torch.ones(2, dtype=torch.int8), "of 8-bit numbers, which need a scale; save the weights before quantisation"),
        (torch.ones(2).to(torch.float8_e4m3fn), "of 8-bit numbers"),
    ],
)
def test_tensors_that_no_layer_can_hold_are_named(value, kind):
    with pytest.raises(UserError, match=rf"the entry b\.weight is {kind}"):
        unwrap({"model": {**WEIGHTS, "b.weight": value}})
