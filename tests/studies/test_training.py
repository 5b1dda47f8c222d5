"""The models that the studies train, and how their trainings are started and gone on."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig

from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import UserError
from sparse_detr.model_zoo import get_config_file
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

    def train(cfg, args, folder, seed, made_from=None):
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


class Training:
    """Takes the place of the process that trains; `finish` writes what a training leaves behind."""

    def __init__(self, monkeypatch):
        self.commands, self.finishes, self.returncode = [], True, 0
        monkeypatch.setattr(training.subprocess, "run", self.run)

    def run(self, command):
        self.commands.append(command)
        folder = Path(command[command.index("--output-dir") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "model_0000001.pth").touch()
        lines = [{"time": 0.5, "iteration": 1}, {"bbox/AP": 12.0, "bbox/AP50": 30.0, "iteration": 2, "time": 0.7}]
        if self.finishes:
            (folder / "model_final.pth").touch()
            (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        self.returncode = 0 if self.finishes else 1
        return self


@pytest.fixture
def process(monkeypatch):
    return Training(monkeypatch)


def train_once(tmp_path, *options, seed=3):
    args = arguments(criteria, *options, output=tmp_path)
    return training.train(training.dense_config(args), args, tmp_path / "done", seed)


def own_data(folder, *, image="1.png"):
    """Write annotation files, and return the options that name them."""
    folder.mkdir(exist_ok=True)
    for part in ("train", "val"):
        (folder / f"{part}.json").write_text(json.dumps({"images": [{"file_name": image}]}))
    parts = [("--train-json", "train.json"), ("--train-images", "images"), ("--val-json", "val.json")]
    parts += [("--val-images", "images")]
    return [text for option, name in parts for text in (option, str(folder / name))]


def test_a_finished_training_is_read_and_not_started(tmp_path, process):
    expected = {"seed": 3, "AP": 12.0, "AP50": 30.0, "seconds_per_iteration": 0.6, "iterations": 2}
    assert train_once(tmp_path) == expected
    assert train_once(tmp_path) == expected
    assert len(process.commands) == 1


def test_a_finished_training_of_other_settings_is_refused(tmp_path, process):
    folder = tmp_path / "done"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    (folder / "metrics.json").write_text(json.dumps({"bbox/AP": 12.0, "iteration": 2}))
    with pytest.raises(UserError, match="done had other settings"):
        train_once(tmp_path)
    assert not process.commands


@pytest.mark.parametrize("finishes", [True, False], ids=["finished", "stopped"])
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--iterations", "9"], "-   max_iter: 600\n"),
        (["--opts", "train.log_period=7"], r"\+   log_period: 7"),
        (["other data"], r"- # train_json: '[0-9a-f]{64}'\n"),
    ],
    ids=["iterations", "opts", "data"],
)
def test_a_training_does_not_go_on_with_other_settings_or_data(tmp_path, process, finishes, options, shown):
    data = own_data(tmp_path / "blood")
    process.finishes = finishes
    if finishes:
        train_once(tmp_path, *data)
    else:
        with pytest.raises(UserError, match="the same command goes on"):
            train_once(tmp_path, *data)
    config = (tmp_path / "configs" / "done.yaml").read_text()
    if options == ["other data"]:
        data, options = own_data(tmp_path / "trees", image="2.png"), []
    with pytest.raises(UserError, match=f"done had other settings or data; remove(.|\n)*{shown}"):
        train_once(tmp_path, *data, *options)
    assert len(process.commands) == 1
    assert (tmp_path / "configs" / "done.yaml").read_text() == config


def test_a_stopped_training_goes_on_and_one_that_has_not_begun_takes_new_settings(tmp_path, process):
    process.finishes = False
    for options in ([], []):
        with pytest.raises(UserError, match="the same command goes on"):
            train_once(tmp_path, *options)
    (tmp_path / "done" / "model_0000001.pth").unlink()
    process.finishes = True
    assert train_once(tmp_path, "--opts", "train.log_period=7")["AP"] == 12.0
    assert len(process.commands) == 3


def test_a_config_with_notes_on_its_data_can_be_loaded(tmp_path, process):
    train_once(tmp_path, *own_data(tmp_path / "blood"))
    path = tmp_path / "configs" / "done.yaml"
    assert path.read_text().startswith("# train_json: '")
    assert load_config(str(path)).train.max_iter == 600


def test_a_line_that_a_kill_has_cut_off_is_left_out_of_the_scores(tmp_path):
    (tmp_path / "model_final.pth").touch()
    lines = ['{"iteration": 19, "time": 0.5}', '{"iteration": 39, "total_l{"iteration": 59, "bbox/AP": 20.0}']
    lines += ['{"iteration": 79, "bbox/AP": 21.0, "bbox/AP50": 40.0}', '{"iteration": 79, "ti']
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    found = {"AP": 21.0, "AP50": 40.0, "seconds_per_iteration": 0.5, "iterations": 79}
    assert training.final_scores(tmp_path) == found


def test_numbers_of_other_data_have_other_settings(tmp_path):
    def settings(folder, image):
        return criteria.make(arguments(criteria, *own_data(folder, image=image), output=tmp_path)).settings

    blood, trees = tmp_path / "blood", tmp_path / "trees"
    assert settings(blood, "1.png")["data"] != settings(trees, "2.png")["data"]
    assert settings(blood, "1.png") == settings(trees, "1.png")
    assert set(settings(blood, "1.png")["data"]) == {"train_json", "train_images", "val_json", "val_images"}
    with pytest.raises(UserError, match=r"gone.json \(train_json\) does not exist"):
        criteria.make(arguments(criteria, "--train-json", "gone.json", output=tmp_path))


def test_numbers_of_another_config_of_the_same_name_have_other_settings(tmp_path):
    settings = []
    for levels in (2, 3):
        folder = tmp_path / str(levels)
        folder.mkdir()
        text = f'from sparse_detr import model_zoo\ncfg = model_zoo.get_config("{training.BASE}")\n'
        text += "model, optimizer, lr_multiplier = cfg.model, cfg.optimizer, cfg.lr_multiplier\n"
        text += f"dataloader, train = cfg.dataloader, cfg.train\ntrain.log_period = {levels}\n"
        (folder / "my.py").write_text(text)
        args = arguments(criteria, "--config-file", str(folder / "my.py"), output=tmp_path)
        settings.append(criteria.make(args).settings)
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"text of the config"}


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
    (tmp_path / "a.json").touch()
    monkeypatch.chdir(tmp_path)
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


def test_the_cost_of_a_model_whose_config_was_edited_is_not_that_of_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(complexity, "measure", lambda config, rho, *_: {**COST, "name": config, "rho": rho})
    cfg = load_config(get_config_file("quick/sparse_detr_mnv2.py"))
    command = ["study", "complexity", "--models", str(tmp_path / "my.yaml"), "--rhos", "0.3"]
    for layers, code in ((2, 0), (2, 0), (4, 2)):
        cfg.model.encoder.layers.count = layers
        LazyConfig.save(cfg, str(tmp_path / "my.yaml"))
        assert main([*command, "--output", str(tmp_path / "out")]) == code
    assert "they were made from other files (config)" in capsys.readouterr().err


COST = {"weights": 1, "published_gigaflops": None} | {
    f"{part}_gigaflops": 1.0 for part in ("encoder", "decoder", "total")
}
