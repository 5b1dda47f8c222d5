"""The study of elastic training: what is missing, and what its tables say."""

import json
import statistics
from pathlib import Path

import pytest

from sparse_detr.errors import UserError


@pytest.fixture
def script(load_script, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")  # it imports its neighbours
    return load_script("measure_elastic")


@pytest.fixture
def study(script, tmp_path):
    """Return two seeds: own models with AP50 60, 70, 80, 90; elastic ones 2 below and 1 above them."""
    study = script.Study(tmp_path / "elastic.json", 10, ["--train-json", "a.json", "optimizer.lr=1e-3"])
    for seed, shift in ((0, -1.0), (1, 1.0)):
        for i, (name, budget) in enumerate(script.SHARES.items()):
            study.add(name, seed, budget, {"AP50": 60 + 10 * i + shift, "refined": float(budget)})
            study.add("elastic", seed, budget, {"AP50": 58 + 10 * i + shift, "refined": float(budget)})
            study.add("elastic_total", seed, budget, {"AP50": 61 + 10 * i + shift, "refined": float(budget)})
        study.add("elastic_total", seed, "mass:0.5", {"AP50": 70 + 2 * shift, "refined": 0.2})
    return study


def test_the_table_has_the_models_of_each_share_and_the_elastic_ones(script, study):
    rows = script.table_of_shares(study).splitlines()
    assert rows[0] == "| AP50 at | rho 10 % | rho 30 % | rho 50 % | rho 100 % |"
    assert rows[2] == "| trained at this share | 60.0 ± 1.4 | 70.0 ± 1.4 | 80.0 ± 1.4 | 90.0 ± 1.4 |"
    assert rows[3].startswith("| elastic, same iterations as each | 58.0 ± 1.4 |")
    assert rows[5] == "| trained at 10 % | 60.0 ± 1.4 |  |  |  |"


def test_the_verdict_names_the_gap_at_every_share(script, study):
    each, total = script.verdict(study).splitlines()
    assert "by -2.0 at 10 %, -2.0 at 30 %, -2.0 at 50 %, -2.0 at 100 % AP50" in each
    assert each.endswith("at some share more than 1 AP50 below them.")
    assert "+1.0 at 10 %" in total
    assert total.endswith("at no share more than 1 AP50 below them.")


def test_a_budget_is_compared_with_the_fixed_share_of_equal_flops_seed_by_seed(script, study):
    """At 20 % of the tokens the fixed share has 66, halfway from 61 to 71, each -1 and +1; the budget 70, -2 and +2."""
    (row,) = script.table_of_budgets(study).splitlines()[2:]
    deviation = statistics.stdev([-1, 1])
    assert "| `mass:0.5` | 20.0 ± 0.0 | 70.0 ± 2.8 | 66.0 ± 1.4 |" in row
    assert row.endswith(f"| 4.0 ± {deviation:.1f} |")


def test_the_picture_is_drawn(script, study, tmp_path):
    script.plot(tmp_path / "plot.png", study)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_only_what_is_missing_is_run_and_other_settings_start_anew(script, study):
    args = script.parse(["elastic", "--seeds", "0", "2", "--iterations", "10", "--budgets", "mass:0.5"])
    missing = script.missing_steps(args, study)
    assert missing[:2] == [("rho10", 0), ("rho30", 0)]  # they lack the other shares
    for model in script.MODELS:
        for budget in script.budgets_of(model, args.budgets):
            study.add(model, 0, budget, {"AP50": 1.0, "refined": 0.1})
    assert script.missing_steps(args, study) == [(model, 2) for model in script.MODELS]
    again = script.Study(study.path, 10, ["--train-json", "b.json", "optimizer.lr=1e-3"])
    assert again.results == json.loads(study.path.read_text())["results"]
    assert script.Study(study.path, 11, ["optimizer.lr=1e-3"]).results == {}
    assert script.Study(study.path, 10, ["optimizer.lr=1e-4"]).results == {}
    assert script.Study(study.path, 99, [], keep=True).results == again.results


def test_a_folder_with_a_training_of_another_length_is_refused(script, tmp_path):
    assert not script.is_trained(tmp_path, 10)
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "time": 1.0, "bbox/AP": 50.0}\n')
    assert script.is_trained(tmp_path, 10)
    with pytest.raises(UserError, match="holds a training of 10 iterations, not of 40"):
        script.is_trained(tmp_path, 40)


def test_names_that_are_too_near_are_moved_apart(script):
    assert script.apart([5.0, 1.0, 5.2, 9.0], gap=1.0) == [5.0, 1.0, 6.0, 9.0]
    assert script.apart([], gap=1.0) == []
