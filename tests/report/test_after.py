"""A training and an evaluation end with a report; nothing that happens to it ends them."""

import json
import logging

import pytest

from sparse_detr.errors import UserError
from sparse_detr.report import after
from sparse_detr.report.make import Report
from tests.test_train import _own_loggers as _own_loggers  # fixtures
from tests.test_train import data as data
from tests.test_train import lazy as lazy
from tests.test_train import main
from tests.test_train import yacs as yacs

OFF = {"lazy": ["train.report=false"], "yacs": ["TEST.REPORT", "False"]}


@pytest.mark.parametrize("kind", ["lazy", "yacs"])
def test_a_training_and_an_evaluation_write_a_report_unless_it_is_off(tmp_path, data, kind, request, capfd):
    command, folder = [*request.getfixturevalue(kind), *data], tmp_path / "out" / "report"
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert f"report written to {folder} in " in printed
    assert f"{folder / 'report.html'}  report on them" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    scores = json.loads((folder / "report.json").read_text())["scores"]
    assert (scores["AP"], scores["AP50"]) == (metrics["bbox/AP"], metrics["bbox/AP50"])
    (folder / "report.json").unlink()
    weights = str(tmp_path / "out" / "model_final.pth")
    named = [f"train.init_checkpoint={weights}"] if kind == "lazy" else ["MODEL.WEIGHTS", weights]
    assert main([*command, "--eval-only", *named, *OFF[kind]]) == 0
    assert not (folder / "report.json").exists()
    assert main([*command, "--eval-only", *named]) == 0
    assert json.loads((folder / "report.json").read_text())["scores"] == scores
    assert (folder / "worst.png").exists()


class MadeUpRun:
    """What the report reads of a run."""

    def __init__(self, folder, report=True):
        self.settings = type("Settings", (), {"output_dir": str(folder), "report": report})
        self.evaluation_sets = []


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "sparse_detr")
    return caplog


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the disk is full"), "no report was written: the disk is full"),
        (ZeroDivisionError("0 / 0"), "no report was written, because of a fault in it: ZeroDivisionError: 0 / 0"),
    ],
)
def test_an_error_of_the_report_is_one_line_of_the_log(tmp_path, monkeypatch, log, error, line):
    def fail(*_):
        raise error

    monkeypatch.setattr(after, "source_of_run", fail)
    after.report_after(MadeUpRun(tmp_path), {"bbox": {"AP": 1.0}})
    assert log.messages == [line]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    after.report_after(MadeUpRun(tmp_path), {"bbox": {"AP": 1.0}})
    assert log.messages[1] == f"{line}; the files in {tmp_path / 'report'} are of an earlier evaluation"


def test_images_that_cannot_be_shown_are_warnings(tmp_path, monkeypatch, log, numbers):
    monkeypatch.setattr(after, "source_of_run", lambda *_: None)
    report = Report({**numbers, "of_run": True}, ["report.json"], ["1.png: it is no image"])
    monkeypatch.setattr(after, "make_report", lambda *_: report)
    after.report_after(MadeUpRun(tmp_path), {"bbox": {"AP": 1.0}})
    warnings = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    assert warnings == ["not shown among the images with most errors: 1.png: it is no image"]
    assert log.messages[-1].endswith("model.postprocess.suppress_duplicates=0.7 (yaml: TEST.SUPPRESS_DUPLICATES 0.7)")


def test_a_run_without_evaluation_data_says_why_there_is_no_report(tmp_path, log):
    after.report_after(MadeUpRun(tmp_path), {"bbox": {"AP": 1.0}})
    [line] = log.messages
    assert line.startswith("no report was written: the config of ")


@pytest.mark.parametrize("case", ["off", "no scores", "another process"])
def test_nothing_is_done_where_no_report_is_due(tmp_path, monkeypatch, log, case):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: case != "another process")
    run = MadeUpRun(tmp_path, report=case != "off")
    after.report_after(run, {} if case == "no scores" else {"bbox": {"AP": 1.0}})
    assert log.messages == []
    assert list(tmp_path.iterdir()) == []
