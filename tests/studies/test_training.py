"""The models that the studies train, and how their trainings are started and gone on."""

import json
from argparse import ArgumentParser

import pytest
import torch

from sparse_detr.cli.main import main
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.model import build_detector
from sparse_detr.errors import UserError
from sparse_detr.modeling.selection import LearnedScorer, ObjectnessScorer, RandomScorer
from sparse_detr.studies import complexity, criteria, depth, teacher, training
from sparse_detr.studies.taught import TaughtDETR, TeacherScorer


def arguments(study, *options, output):
    parser = ArgumentParser()
    study.add_arguments(parser)
    args = parser.parse_args(list(options))
    args.output = output
    return args


@pytest.fixture
def trained(monkeypatch):
    """Take the place of the trainings: collect the models that they would train, by folder."""
    models = {}

    def train(cfg, args, folder, seed):
        models[folder.name] = build_detector(cfg, device="cpu")
        return {"seed": seed, "AP": 1.0, "AP50": 2.0}

    for study in (criteria, depth, teacher):
        monkeypatch.setattr(study, "train", train)
    return models


def run_parts(study, *options, output):
    return {key: part() for key, part in study.make(arguments(study, *options, output=output)).parts.items()}


def test_the_criteria_differ_in_the_scorer_alone(trained, tmp_path):
    results = run_parts(criteria, "--rhos", "0.2", "--seeds", "4", output=tmp_path)
    assert list(results) == [
        "dense seed 4",
        *(f"{scorer} at 0.2 seed 4" for scorer in ("attention_map", "objectness", "random")),
    ]
    scorers = {name.split("_rho")[0]: type(getattr(model.selector, "scorer", None)) for name, model in trained.items()}
    assert scorers == {
        "dense": type(None),
        "attention_map": LearnedScorer,
        "objectness": ObjectnessScorer,
        "random": RandomScorer,
    }
    assert {model.keep_ratio for name, model in trained.items() if "dense" not in name} == {0.2}
    assert not any(len(model.encoder_heads) for model in trained.values())


def test_the_depths_have_heads_for_all_layers_but_the_last_or_none(trained, tmp_path):
    run_parts(depth, "--depths", "2", "4", output=tmp_path)
    found = {name: (len(model.encoder.layers), len(model.encoder_heads)) for name, model in trained.items()}
    assert found == {
        "depth2_with_loss_seed0": (2, 1),
        "depth2_without_loss_seed0": (2, 0),
        "depth4_with_loss_seed0": (4, 3),
        "depth4_without_loss_seed0": (4, 0),
    }


def test_a_taught_model_has_the_trained_teacher_in_it(trained, tmp_path):
    args = arguments(teacher, "--rhos", "0.3", "--seeds", "0", "--opts", "model.num_classes=3", output=tmp_path)
    own = build_detector(training.dense_config(args), device="cpu")
    (tmp_path / "teacher_seed0").mkdir()
    torch.save({"model": own.state_dict()}, tmp_path / "teacher_seed0" / "model_final.pth")
    for part in teacher.make(args).parts.values():
        part()
    student = trained["taught_rho30_seed0"]
    assert isinstance(student, TaughtDETR)
    assert isinstance(student.selector.scorer, TeacherScorer)
    assert not isinstance(trained["teacher_seed0"], TaughtDETR)
    for name, weight in student.teacher.state_dict().items():
        assert torch.equal(weight, own.state_dict()[name])
    assert not any(weight.requires_grad for weight in student.teacher.parameters())


def test_a_finished_training_is_read_and_not_started(tmp_path, monkeypatch):
    folder = tmp_path / "done"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    lines = [{"time": 0.5, "iteration": 1}, {"bbox/AP": 12.0, "bbox/AP50": 30.0, "iteration": 2, "time": 0.7}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(training.subprocess, "run", lambda *args: pytest.fail("a training was started"))
    args = arguments(criteria, output=tmp_path)
    (tmp_path / "configs").mkdir()
    cfg = training.dense_config(args)
    cfg.train.seed, cfg.train.max_iter, cfg.train.eval_period = 3, args.iterations, args.iterations
    (tmp_path / "configs" / "done.yaml").write_text(kind_of(cfg).text())
    result = training.train(training.dense_config(args), args, folder, 3)
    assert result == {"seed": 3, "AP": 12.0, "AP50": 30.0, "seconds_per_iteration": 0.6, "iterations": 2}


def test_a_finished_training_of_other_settings_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "done"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    (folder / "metrics.json").write_text(json.dumps({"bbox/AP": 12.0, "iteration": 2}))
    monkeypatch.setattr(training.subprocess, "run", lambda *args: pytest.fail("a training was started"))
    args = arguments(criteria, output=tmp_path)
    with pytest.raises(UserError, match="done had other settings"):
        training.train(training.dense_config(args), args, folder, 3)


def test_numbers_of_other_data_have_other_settings(tmp_path):
    own = arguments(criteria, "--train-json", str(tmp_path / "own.json"), output=tmp_path)
    assert criteria.make(own).settings["data"] == {"train_json": "own.json"}
    assert "data" not in criteria.make(arguments(criteria, output=tmp_path)).settings


def test_own_models_whose_names_differ_by_rho_are_all_counted(tmp_path):
    names = ["SparseDETR/sparse_detr_r50_rho10.py", "SparseDETR/sparse_detr_r50_rho30.py"]
    own = complexity.make(arguments(complexity, "--models", *names, output=tmp_path)).parts
    assert list(own) == [f"{name} at its own" for name in names]
    assert not set(own) & set(complexity.make(arguments(complexity, output=tmp_path)).parts)


def test_a_training_gets_the_config_the_data_and_goes_on_and_its_failure_is_named(tmp_path, monkeypatch):
    commands = []

    class Failed:
        returncode = 1

    monkeypatch.setattr(training.subprocess, "run", lambda command: commands.append(command) or Failed)
    args = arguments(criteria, "--iterations", "7", "--train-json", "a.json", output=tmp_path)
    with pytest.raises(UserError, match="the same command goes on"):
        training.train(training.dense_config(args), args, tmp_path / "run", 5)
    (command,) = commands
    assert "--resume" in command
    assert command[command.index("--train-json") + 1] == "a.json"
    text = (tmp_path / "configs" / "run.yaml").read_text()
    assert "max_iter: 7" in text
    assert "seed: 5" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["criteria", "--iterations", "0"], "--iterations 0 trains nothing"),
        (["criteria", "--rhos", "1.5"], "--rhos 1.5 is no share"),
        (["criteria", "--seeds", "1", "1"], "--seeds names a seed twice"),
        (["criteria", "--config-file", "SparseDETR/sparse_detr_r50_rho30.yaml"], "a study changes parts of the model"),
        (["criteria", "--config-file", "DeformableDETR/deformable_detr_r50.py"], "has no proposals"),
        (["criteria", "--config-file", "gone.py"], "no config 'gone.py'"),
        (["depth", "--depths", "3"], "--depths 3 compares nothing"),
        (["referred"], "no trained model is named"),
        (["referred", "--runs", "nowhere"], "there is no config.yaml"),
        (["referred", "--config-file", "a.py"], "go together"),
        (["other-rho", "--rhos", "0"], "--rhos 0 is no share"),
        (["teacher", "--rhos", "0.3", "1"], "--rhos 1 is the teacher itself"),
        (["complexity", "--rhos", "0.3"], "--rhos needs --models"),
        (["complexity", "--image-size", "4", "4"], "--image-size 4 4 is too small"),
        (["complexity", "--models", "quick/gone.py"], "no config 'quick/gone.py'"),
    ],
)
def test_wrong_options_are_named(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *command]) == 2
    assert message in capsys.readouterr().err


def test_the_cost_of_own_models_is_counted_over_rho(tmp_path, capsys):
    options = ["--models", "quick/sparse_detr_mnv2.py", "--rhos", "0.1", "0.5", "--image-size", "64", "96"]
    assert main(["study", "complexity", *options, "--output", str(tmp_path)]) == 0
    assert "Cannot tell" in capsys.readouterr().out
    results = json.loads((tmp_path / "complexity.json").read_text())["results"]
    few, many = (one["encoder_gigaflops"] for one in results.values())
    assert few < many
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}
