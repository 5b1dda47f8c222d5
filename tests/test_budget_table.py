"""The measured table of budgets, by hand."""

import json

import pytest

from sparse_detr.budget_table import (
    Entry,
    best_within,
    budget_within,
    cheapest_near_best,
    file_digest,
    read_table,
)
from sparse_detr.errors import UserError

FEW = Entry(budget="0.1", form="plain", score=40.0, milliseconds=10.0)
SOME = Entry(budget="0.3", form="plain", score=43.0, milliseconds=20.0)
LEVELS = Entry(budget="levels:0.1,0.5,1", form="plain", score=43.0, milliseconds=18.0)
ALL = Entry(budget="1", form="plain", score=43.5, milliseconds=60.0)
ENTRIES = [FEW, SOME, LEVELS, ALL]


def test_the_best_within_a_time_has_the_highest_score_and_of_equal_ones_the_least_time():
    assert best_within(ENTRIES, 60) is ALL
    assert best_within(ENTRIES, 59.9) is LEVELS
    assert best_within(ENTRIES, 17) is FEW
    assert best_within(ENTRIES, 9) is None


def test_the_cheapest_near_the_best_is_the_fastest_with_little_loss():
    assert cheapest_near_best(ENTRIES, 0) is ALL
    assert cheapest_near_best(ENTRIES, 0.5) is LEVELS
    assert cheapest_near_best(ENTRIES, 3.5) is FEW
    assert cheapest_near_best([], 1) is None


def write(path, *entries):
    rows = [
        {"budget": e.budget, "form": e.form, "scores": {"AP": e.score}, "milliseconds": {"p50": e.milliseconds}}
        for e in entries
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"entries": [*rows, {"budget": "0.5", "form": "plain", "scores": None}]}))


def test_the_table_is_read_as_far_as_it_is_measured(tmp_path):
    write(tmp_path / "sweep.json", *ENTRIES)
    assert read_table(tmp_path / "sweep.json") == ENTRIES


def test_a_time_means_the_best_budget_of_the_table_beside_the_weights(tmp_path):
    write(tmp_path / "sweep" / "sweep.json", *ENTRIES)
    weights = str(tmp_path / "model_final.pth")
    assert budget_within("ms:19", weights, "plain") == "levels:0.1,0.5,1"
    with pytest.raises(UserError, match="has no times of the fp32 form, only of: plain"):
        budget_within("ms:19", weights, "fp32")


def test_a_table_of_other_weights_is_refused(tmp_path):
    write(tmp_path / "sweep" / "sweep.json", *ENTRIES)
    weights, table = tmp_path / "model_final.pth", tmp_path / "sweep" / "sweep.json"
    weights.write_bytes(b"weights")
    table.write_text(json.dumps({**json.loads(table.read_text()), "setting": {"weights": file_digest(str(weights))}}))
    assert budget_within("ms:19", str(weights), "plain") == "levels:0.1,0.5,1"
    weights.write_bytes(b"better weights")
    with pytest.raises(
        UserError, match=r"sweep.json is of other weights than .*; measure these with sparse-detr sweep"
    ):
        budget_within("ms:19", str(weights), "plain")


@pytest.mark.parametrize(("of_table", "of_model", "option"), [(True, False, "without"), (False, True, "with")])
def test_a_table_of_averaged_weights_is_not_that_of_the_plain_ones(tmp_path, of_table, of_model, option):
    write(tmp_path / "sweep" / "sweep.json", *ENTRIES)
    weights, table = str(tmp_path / "model_final.pth"), tmp_path / "sweep" / "sweep.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "setting": {"ema": of_table}}))
    assert budget_within("ms:19", weights, "plain", ema=of_table) == "levels:0.1,0.5,1"
    with pytest.raises(UserError, match=f"weights of a checkpoint.*sparse-detr sweep {option} --ema"):
        budget_within("ms:19", weights, "plain", ema=of_model)


@pytest.mark.parametrize("content", ["[]", "{}", '{"entries": [{"budget": 1}]', '{"entries": [3]}'])
def test_what_is_no_table_is_named(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="x.json is not a table of `sparse-detr sweep`"):
        read_table(tmp_path / "x.json")
