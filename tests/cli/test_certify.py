"""The command `certify`: its exit code, what it prints, its JSON, and its errors."""

import json

import pytest

from sparse_detr.cli import certify as command
from sparse_detr.cli.main import main
from tests.cli.test_benchmark import folder  # noqa: F401 a fixture


def certify(kind, *options):
    return main(["certify", "--config-file", kind, "--input", "images", "--draws", "1", *options])


def test_a_good_model_passes(folder, capsys):  # noqa: F811
    assert certify("sparse.py", "--budget", "own", "levels:0.2,0.5,1") == 0
    output = capsys.readouterr().out
    assert "passed: 12 comparisons of 2 images are inside the tolerances; 4 more are reported only" in output
    assert "budget levels:0.2,0.5,1, float32, plain" in output
    assert "reported only" in output


def test_all_numbers_are_printed_as_json(folder, capsys):  # noqa: F811
    assert certify("sparse.py", "--dtypes", "float64", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"]
    assert record["comparisons"][0]["allowed"] == {"scores": 1e-9, "logits": 1e-9, "boxes": 1e-9}


def test_an_image_that_cannot_be_read_is_left_out_and_counted(folder, capsys):  # noqa: F811
    (folder / "images" / "a_broken.png").write_bytes(b"no image")
    assert certify("sparse.py", "--dtypes", "float64", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["images"] == 2
    assert "1 of 3 images cannot be read and are left out" in said.err


def test_a_model_with_a_released_part_fails_and_the_part_is_named(folder, capsys):  # noqa: F811
    options = ["--dtypes", "float64", "--json", "--opts", "model.tokenizer.padding=released"]
    assert certify("sparse.py", *options) == 1
    record = json.loads(capsys.readouterr().out)
    assert not record["passed"]
    assert any("in a padded batch: scores differ" in reason for reason in record["reasons"])
    assert "MultiScaleTokenizer(padding='released')" in record["exceptions"][0]


def test_a_form_that_this_machine_lacks_is_named(folder, capsys):  # noqa: F811
    assert certify("dense.py", "--dtypes", "float32", "float16", "--forms", "optimized") == 0
    assert "not checked: optimized float16: float16 is slow on a CPU" in capsys.readouterr().out


def test_nothing_to_compare_is_no_pass(folder, capsys):  # noqa: F811
    assert certify("dense.py", "--dtypes", "float16", "--forms", "optimized") == 2
    assert "nothing can be compared: optimized float16: float16 is slow on a CPU" in capsys.readouterr().err


def test_a_time_is_the_budget_of_a_table(folder, capsys):  # noqa: F811
    entry = {"budget": "0.3", "form": "plain", "scores": {"AP": 1.0}, "milliseconds": {"p50": 20.0}}
    (folder / "sweep.json").write_text(json.dumps({"entries": [entry]}))
    asked = ["--dtypes", "float64", "--json", "--budget"]
    assert certify("sparse.py", *asked, "ms:30@sweep.json") == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert certify("sparse.py", *asked, "0.3") == 0
    same = json.loads(capsys.readouterr().out)["comparisons"]
    assert {entry["budget"] for entry in found} == {"ms:30@sweep.json"}
    assert [{**entry, "budget": "0.3"} for entry in found] == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "1"], "--batch-size 1 cannot be used; give 2 or more"),
        (["--budget", "half"], "'half' is no budget"),
        (["--budget", "0.3+decoder:1"], "--budget 0.3+decoder:1 sets more than the tokens"),
        (["--budget", "ms:30"], "sweep/sweep.json cannot be read"),
        (["--budget", "0.3", "0.3"], "--budget names a value twice"),
        (["--weights", " "], "--weights is empty"),
        (["--weights", "gone.pth"], "gone.pth"),
        (["--ema"], "--ema needs a checkpoint"),
        (["--budget", "levels:0.5,1"], "has 2 shares, but this model 3 levels"),
    ],
)
def test_wrong_options_name_the_value(folder, capsys, options, message):  # noqa: F811
    assert certify("sparse.py", *options) == 2
    assert message in capsys.readouterr().err


def test_a_dense_model_has_no_budget_to_certify(folder, capsys):  # noqa: F811
    assert certify("dense.py", "--budget", "0.3") == 2
    assert "dense encoder" in capsys.readouterr().err


def test_every_dtype_of_the_command_is_one_of_torch():
    import torch

    assert all(isinstance(getattr(torch, name), torch.dtype) for name in command.DTYPES)
