"""Averaged weights can be used wherever weights can, and results say which ones they are of."""

import json
from argparse import Namespace

import pytest
import torch

from sparse_detr import Predictor
from sparse_detr.budget_table import file_digest
from sparse_detr.cli._model import weights_text
from sparse_detr.cli.explain import second_model
from sparse_detr.cli.main import main
from sparse_detr.cli.study import StudyParser
from sparse_detr.engine.weights import load_trained_weights
from sparse_detr.studies.trained import Trained, facts_of, trained_of
from tests.cli.test_command_line import parsers
from tests.cli.test_demo import folder  # noqa: F401
from tests.engine.test_resume import EMA
from tests.engine.toys import ToyDetector, toy_run

pytestmark = pytest.mark.filterwarnings("ignore")


def options_below(parser):
    """Yield the options of a parser and of every one below it."""
    if isinstance(parser, StudyParser):
        parser.declare()
    yield {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        for below in action.choices.values() if hasattr(action.choices, "values") else ():
            yield from options_below(below)


def test_every_command_that_takes_weights_takes_averaged_ones():
    of_commands = {name: list(options_below(parser)) for name, parser in parsers()}
    with_weights = {name for name, options in of_commands.items() if any("--weights" in some for some in options)}
    assert {"sparse-detr demo", "sparse-detr export", "sparse-detr study", "sparse-detr blame"} <= with_weights
    for name in with_weights:
        assert all("--ema" in some for some in of_commands[name] if "--weights" in some), name
    assert any("--ema" in some for some in of_commands["sparse-detr convert"])
    assert any("--ema" in some for some in of_commands["train_net.py"])


def test_the_name_of_weights_says_that_they_are_averaged():
    assert weights_text("a.pth", averaged=True) == "a.pth (averaged)"
    assert weights_text("a.pth", averaged=False) == "a.pth"
    assert weights_text(None, averaged=True) == ""


@pytest.fixture
def averaged(folder):  # noqa: F811
    """Put averaged weights into the checkpoint of the folder; return those of one parameter, plain and averaged."""
    checkpoint = torch.load(folder / "sparse.pth", weights_only=True)
    plain = checkpoint["model"]
    average = {f"module.{name}": value + (0.5 if value.is_floating_point() else 0) for name, value in plain.items()}
    torch.save({**checkpoint, "ema": {"n_averaged": torch.tensor(3), **average}}, folder / "sparse.pth")
    name = next(name for name, value in plain.items() if value.is_floating_point())
    return name, plain[name], average[f"module.{name}"]


def value(predictor, name):
    return predictor.model.state_dict()[name]


def test_a_predictor_holds_the_weights_that_were_asked_for(averaged):
    name, plain, average = averaged
    assert torch.equal(value(Predictor("sparse.py", "sparse.pth"), name), plain)
    assert torch.equal(value(Predictor("sparse.py", "sparse.pth", ema=True), name), average)


def test_the_model_to_compare_with_can_be_of_averaged_weights(averaged):
    name, plain, average = averaged
    first = Predictor("sparse.py", "sparse.pth")
    paths = ("sparse.py", "sparse.pth")
    assert torch.equal(value(second_model(paths, first), name), plain)
    assert torch.equal(value(second_model(paths, first, averaged=True), name), average)


@pytest.mark.parametrize("of_average", [True, False])
def test_a_time_of_averaged_weights_needs_their_own_table(averaged, folder, capsys, of_average):  # noqa: F811
    row = {"budget": "0.1", "form": "plain", "scores": {"AP": 1.0}, "milliseconds": {"p50": 5.0}}
    setting = {"weights": file_digest("sparse.pth"), "ema": of_average}
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text(json.dumps({"setting": setting, "entries": [row]}))
    command = ["benchmark", "--config-file", "sparse.py", "--weights", "sparse.pth", "--ema", "--budget", "ms:30"]
    options = ["--input", "images", "--output", "out", "--rounds", "1", "--batch-sizes", "1", "--allow-busy"]
    assert main([*command, *options]) == (0 if of_average else 2)
    said = capsys.readouterr()
    assert ("keep ms:30 = 0.1" in said.out) is of_average
    assert ("sweep.json is of" in said.err) is not of_average


def test_averaged_weights_of_a_second_model_need_one(folder, capsys):  # noqa: F811
    command = ["explain", "images", "--config-file", "sparse.py", "--weights", "sparse.pth", "--compare-ema"]
    assert main([*command, "--output", "out"]) == 2
    assert "--compare-ema needs a second model; give --compare CONFIG WEIGHTS" in capsys.readouterr().err


def test_results_of_demo_say_that_the_weights_are_averaged(averaged, folder):  # noqa: F811
    command = ["demo", "--config-file", "sparse.py", "--weights", "sparse.pth", "--ema", "--input", "images/tall.jpg"]
    assert main([*command, "--output", "out", "--train-json", "classes.json"]) == 0
    [file] = (folder / "out").glob("*.json")
    assert json.loads(file.read_text())["weights"] == "sparse.pth (averaged)"


def test_a_study_evaluates_the_averaged_weights(averaged):
    name, _, average = averaged
    args = Namespace(runs=[], config_file="sparse.py", weights="sparse.pth", ema=True, opts=[])
    [model] = trained_of(args)
    assert model == Trained("sparse", "", "sparse.py", "sparse.pth", ema=True)
    assert torch.equal(model.load()[0].state_dict()[name], average)
    assert facts_of(args) == {"overrides": [], "averaged": True}
    assert facts_of(Namespace(ema=False, opts=[])) == {"overrides": []}


def test_a_best_model_of_averaged_weights_loads_as_what_was_scored(tmp_path):
    from sparse_detr.engine.training import train

    scores = [1.0, 5.0, 9.0, 3.0, 1.0, 7.0, 1.0, 6.0]  # plain and averaged in turns
    train(toy_run(tmp_path, scores=scores, best_metric="ema/bbox/AP", **EMA))
    scored = torch.load(tmp_path / "model_0000005.pth", weights_only=True)["ema"]["module.head.weight"]
    for ema in (False, True):
        model = ToyDetector()
        load_trained_weights(model, tmp_path / "model_best.pth", ema=ema)
        assert torch.equal(model.head.weight, scored)
