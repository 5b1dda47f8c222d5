"""The script `same_losses.py` compares all numbers and weights, and finds every difference."""

import math
import subprocess

import pytest
import torch

from sparse_detr.errors import UserError

BEFORE = {0: {"loss_bbox": 1.0, "time": 0.2, "lr": 0.1}, 1: {"loss_bbox": 0.5, "time": 0.2, "lr": 0.1}}
WEIGHTS = {"a": torch.ones(2), "b": torch.zeros(1)}
TRAIN_NET = """
import json, os, pathlib, shutil, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
config = pathlib.Path(sys.argv[sys.argv.index("--config-file") + 1])
assert os.environ["OMP_NUM_THREADS"] == "1" and "train.max_iter=2" in sys.argv
loss = float(config.read_text())
output.mkdir(parents=True)
lines = [{"iteration": step, "loss": loss, "time": 0.1} for step in range(2)]
(output / "metrics.json").write_text("".join(json.dumps(line) + chr(10) for line in lines))
shutil.copy("weights.pth", output / "model_final.pth")
"""


@pytest.fixture
def script(load_script):
    return load_script("same_losses")


@pytest.fixture
def repository(script, tmp_path, monkeypatch):
    """Return a repository with one commit; its training writes the number in its config as loss and copies weights."""
    root = tmp_path / "repository"
    for path, text in {
        "train_net.py": TRAIN_NET,
        "ops/build.py": "",
        "ops/csrc/kernel.h": "",
        "configs/quick/tiny_mnv2.py": "1.5",
        "configs/quick/other_mnv2.py": "2.5",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    torch.save({"model": WEIGHTS}, root / "weights.pth")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "x"], ["branch", "old"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    monkeypatch.setattr(script, "ROOT", root)
    return root


def test_equal_numbers_and_weights_are_identical_for_any_times(script):
    after = {step: {**line, "time": 0.3} for step, line in BEFORE.items()}
    found = script.compare(BEFORE, after, WEIGHTS, WEIGHTS)
    assert found.differences == []
    assert found.numbers == 4
    assert str(found).startswith("identical (4 numbers of 2 iterations")
    assert found.step_ratio == pytest.approx(1.5)


def test_the_first_number_that_differs_is_named_with_both_values(script):
    after = {0: BEFORE[0], 1: {**BEFORE[1], "loss_bbox": 0.5000000001}}
    [difference] = script.compare(BEFORE, after, WEIGHTS, WEIGHTS).differences
    assert difference == "iteration 1, loss_bbox is 0.5 before and 0.5000000001 after"


def test_nan_on_both_sides_is_no_difference(script):
    before, after = ({0: {"loss": value}} for value in (math.nan, math.nan))
    assert script.first_difference(before, after) == ""
    assert "loss is nan before and 1.0 after" in script.first_difference(before, {0: {"loss": 1.0}})


@pytest.mark.parametrize(("names", "side"), [(["loss_bbox", "new"], "after"), ([], "before")])
def test_a_loss_on_one_side_only_is_a_difference(script, names, side):
    after = {**BEFORE, 0: {"lr": 0.1, **dict.fromkeys(names, 1.0)}}
    assert f"is only {side} the change" in script.first_difference(BEFORE, after)


def test_a_missing_iteration_is_a_difference(script):
    assert script.first_difference(BEFORE, {0: BEFORE[0]}) == "iteration 1, loss_bbox is only before the change"


def test_a_weight_that_differs_or_is_renamed_is_named(script):
    assert script.first_different_weight(WEIGHTS, {**WEIGHTS, "b": torch.ones(1)}) == "the weight b differs"
    renamed = {"a": WEIGHTS["a"], "c": WEIGHTS["b"]}
    assert script.first_different_weight(WEIGHTS, renamed) == "the weight b is only before the change"


def test_without_step_times_the_ratio_is_left_out(script):
    bare = {0: {"loss_bbox": 1.0}}
    assert str(script.compare(bare, bare, WEIGHTS, WEIGHTS)).endswith("too few iterations for a step time")


def test_measures_that_only_one_side_logs_are_not_compared_and_those_of_both_are(script):
    bare, measured, other = (
        {0: {"loss_bbox": 1.0, **more}} for more in ({}, {"tokens/recall": 0.5}, {"tokens/recall": 1.0})
    )
    assert script.compare(bare, measured, WEIGHTS, WEIGHTS).differences == []
    assert script.compare(measured, bare, WEIGHTS, WEIGHTS).differences == []
    assert "tokens/recall is 0.5 before" in script.compare(measured, other, WEIGHTS, WEIGHTS).differences[0]


def test_nothing_to_compare_is_an_error(script):
    with pytest.raises(UserError, match="no numbers"):
        script.compare({}, {}, WEIGHTS, WEIGHTS)


def test_both_sides_are_trained_and_a_change_of_the_working_tree_is_found(script, repository, capsys):
    arguments = ["old", "--iterations", "2", "--all"]
    assert script.main(arguments) == 0
    assert capsys.readouterr().out.count("identical") == 2
    (repository / "configs/quick/tiny_mnv2.py").write_text("1.25")
    assert script.main(arguments) == 1
    told = capsys.readouterr().out
    assert "DIFFERENT: iteration 0, loss is 1.5 before and 1.25 after (" in told
    assert told.count("identical") == 1


def test_a_renamed_config_is_found_under_its_old_name(script, repository):
    (repository / "configs/quick/tiny_mnv2.py").rename(repository / "configs/quick/new_mnv2.py")
    old = script.unpack("old", repository.parent / "base")
    new = "configs/quick/new_mnv2.py"
    with pytest.raises(UserError, match="give --renamed new_mnv2=OLD with OLD one of: other_mnv2, tiny_mnv2"):
        script.name_in_base(new, old, [])
    assert script.name_in_base(new, old, ["new_mnv2=tiny_mnv2"]) == "configs/quick/tiny_mnv2.py"


def test_a_new_config_is_named_and_the_others_are_compared(script, repository, capsys):
    (repository / "configs/quick/new_mnv2.py").write_text("3.5")
    assert script.main(["old", "--iterations", "2", "--all"]) == 0
    told = capsys.readouterr().out
    assert told.count("identical") == 2
    assert "new_mnv2: NOT COMPARED, BASE has no such config; if it had another name: --renamed new_mnv2=OLD" in told
    for name in ("tiny", "other"):
        (repository / f"configs/quick/{name}_mnv2.py").unlink()
    assert script.main(["old", "--iterations", "2", "--all"]) == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_other_native_sources_are_built_in_base(script, repository):
    old = script.unpack("old", repository.parent / "base")
    assert script.common_environment(old)["SPARSE_DETR_NATIVE_DIR"] == str(repository / script.NATIVE)
    (old / "ops/build.py").write_text("print('built')")
    assert "SPARSE_DETR_NATIVE_DIR" not in script.common_environment(old)
    assert (old / "build.txt").read_text() == "built\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no-such-branch"], "name a commit, branch or tag"), (["old", "--config-file", "x.py"], "BASE has no x.py")],
)
def test_a_mistake_is_one_clear_error(script, repository, capsys, arguments, message):
    assert script.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_a_training_that_fails_ends_with_its_last_lines(script, repository, capsys):
    (repository / "train_net.py").write_text("raise SystemExit('no data')")
    assert script.main(["old", "--iterations", "2", "--config-file", "configs/quick/tiny_mnv2.py"]) == 2
    assert "no data" in capsys.readouterr().err
