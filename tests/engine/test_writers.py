"""Services get the numbers of a training only if they are asked for, and a fault of theirs does not end it."""

import json
import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sparse_detr.engine.training import train
from sparse_detr.engine.writers import build_writers, check_writers
from sparse_detr.errors import UserError
from tests.engine.test_resume import train_interrupted
from tests.engine.toys import toy_run


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    return caplog


class Wandb(ModuleType):
    """A package that keeps what it gets."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.started.append(options)
        return SimpleNamespace(id=options["id"] or f"run{len(self.started)}", log=self.log, finish=self.finish)

    def log(self, scalars, step):
        self.logged.append((step, scalars))

    def finish(self):
        self.finished += 1


class Mlflow(ModuleType):
    """The same for MLflow, whose functions are the package's own."""

    def __init__(self):
        super().__init__("mlflow")
        self.calls, self.logged, self.parameters, self.ended = [], [], {}, 0

    def set_experiment(self, name):
        self.calls.append(("experiment", name))

    def start_run(self, *, run_name=None, run_id=None):
        self.calls.append(("start", run_name, run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "m1"))

    def log_params(self, parameters):
        assert len(parameters) <= 100
        self.parameters |= parameters

    def log_metrics(self, scalars, step):
        self.logged.append((step, scalars))

    def end_run(self):
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch):
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.fixture
def mlflow(monkeypatch):
    package = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", package)
    return package


def test_nothing_is_imported_or_sent_unless_asked_for(tmp_path, wandb, mlflow, monkeypatch):
    def refuse(name):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr("sparse_detr.engine.writers._package", refuse)
    train(toy_run(tmp_path, scores=[1.0] * 4))
    assert (wandb.started, mlflow.calls) == ([], [])
    assert not (tmp_path / ".writers.json").exists()


def test_both_services_get_the_numbers_of_metrics_json(tmp_path, wandb, mlflow):
    train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0, 4.0], log_period=2, writers=["wandb", "mlflow"]))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    written = {line.pop("iteration"): line for line in lines}
    assert len(written) == 5  # four logs and the last evaluation
    for package in (wandb, mlflow):
        assert dict(package.logged) == written
        assert [step for step, _ in package.logged] == sorted(written)
    assert written[8] == {"bbox/AP": 4.0}
    assert (wandb.finished, mlflow.ended) == (1, 1)


def test_a_run_has_the_name_of_its_folder_and_the_config(tmp_path, wandb, mlflow, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "blood cells")
    config = {f"key{index}": "x" * 300 for index in range(150)} | {"a[0]": "1"}
    (tmp_path / "mine").mkdir()
    build_writers(["wandb", "mlflow"], folder=str(tmp_path / "mine"), config=config, resumed=False)
    [started] = wandb.started
    assert (started["project"], started["name"], started["id"]) == ("sparse_detr", "mine", None)
    assert started["config"] == config
    assert mlflow.calls == [("experiment", "blood cells"), ("start", "mine", None)]
    assert len(mlflow.parameters) == 151
    assert mlflow.parameters["key0"] == "x" * 250
    assert mlflow.parameters["a_0_"] == "1"


def test_a_resume_goes_on_with_the_same_runs_and_a_new_training_starts_new_ones(tmp_path, wandb, mlflow, monkeypatch):
    writers = ["wandb", "mlflow"]
    train_interrupted(toy_run(tmp_path, writers=writers), monkeypatch, before=5)
    train(toy_run(tmp_path, writers=writers), resume_last=True)
    assert [started["id"] for started in wandb.started] == [None, "run1"]
    assert mlflow.calls[1:] == [("start", tmp_path.name, None), ("start", None, "m1")]
    train(toy_run(tmp_path, writers=writers))
    assert wandb.started[2]["id"] is None


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_an_error_before_the_training_starts(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    built = []
    run = toy_run(tmp_path, writers=[name])
    object.__setattr__(run, "build_model", lambda: built.append(1))
    with pytest.raises(UserError, match=rf"names {name}, which cannot be imported .*`pip install {name}`, or leave it"):
        train(run)
    assert not built


def test_a_folder_with_the_name_of_a_package_is_not_taken_for_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(UserError, match=r"cannot be imported \(a folder has its name\); install it"):
        check_writers(["wandb"])


def test_a_run_that_cannot_be_started_is_an_error_with_the_remedy(tmp_path, wandb, monkeypatch):
    def without_login(**options):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(wandb, "init", without_login)
    with pytest.raises(
        UserError, match=r"wandb cannot start a run \(api_key not configured\); log in with `wandb login`"
    ):
        train(toy_run(tmp_path, writers=["wandb"]))


def test_a_service_that_is_gone_does_not_end_the_training(tmp_path, wandb, monkeypatch, listen):
    def gone(scalars, step):
        raise ConnectionError("the network is down")

    monkeypatch.setattr(wandb, "log", gone)
    train(toy_run(tmp_path, writers=["wandb"], log_period=1))
    assert (tmp_path / "model_final.pth").exists()
    assert listen.text.count("WandbWriter stops: the network is down; the training goes on") == 1
    assert len((tmp_path / "metrics.json").read_text().splitlines()) == 8
