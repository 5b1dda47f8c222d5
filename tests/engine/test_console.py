"""The terminal gets one short line, the log file and metrics.json get all losses."""

import io
import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from detectron2.utils.events import EventStorage

from sparse_detr.engine.console import ALL_LOSSES, PROGRESS, AllLosses, ConsoleLine, peak_memory, shown_losses
from sparse_detr.engine.training import train
from tests.engine.toys import ToyWithLosses, toy_run

LOSSES = {"total_loss": 9.0, "loss_class": 0.5, "loss_bbox": 0.25, "loss_giou": 1.0, "loss_class_0": 2.0}


@pytest.fixture
def lines(monkeypatch):
    """Return the lines that are logged as progress."""
    found = []
    monkeypatch.setattr(PROGRESS, "info", found.append)
    monkeypatch.setattr("sparse_detr.engine.console.peak_memory", lambda device: 1.5 * 2**30)
    return found


def console(**options):
    return ConsoleLine(**{"max_iter": 100, "metric": "bbox/AP", "best": lambda: None, **options})


def at(iteration, **scalars):
    storage = EventStorage(iteration)
    storage.put_scalars(**scalars)
    return storage


def test_a_line_says_what_matters_by_hand(lines):
    storage = at(19, **LOSSES, time=2.0, lr=0.0002)
    storage.put_scalar("bbox/AP", 23.456, smoothing_hint=False)
    with storage:
        console(best=lambda: 24.0).write()
    # 80 iterations of 2 s are left
    assert lines == [
        "iter 20/100  ETA 2m40s  loss 9  class 0.5  bbox 0.25  giou 1  AP 23.46 (best 24)  lr 0.0002"
        "  2 s/iter  1.50 GiB"
    ]


def test_the_first_line_of_a_training_leaves_out_what_is_not_known(lines):
    with at(0, **LOSSES):
        console().write()
    assert lines == ["iter 1/100  loss 9  class 0.5  bbox 0.25  giou 1  1.50 GiB"]


def test_after_a_resume_the_best_score_is_known_before_the_first_evaluation(lines):
    with at(0, **LOSSES):
        console(best=lambda: 24.0, metric="ema/bbox/AP").write()
    assert "ema/AP best 24  " in lines[0]


def test_the_shown_losses_are_medians(lines):
    storage = EventStorage(0)
    for iteration, loss in enumerate([1.0, 100.0, 3.0]):
        storage.iter = iteration
        storage.put_scalars(total_loss=loss, loss_class=loss / 2)
    with storage:
        console().write()
    assert "loss 3  class 1.5  " in lines[0]


def test_a_time_budget_limits_the_eta(lines):
    with at(19, **LOSSES, time=2.0):
        console(time_left=lambda: 90.0).write()
        console(time_left=lambda: -5.0).write()
        console(time_left=lambda: 1000.0).write()
    assert [line.split("  ")[1] for line in lines] == ["ETA 1m30s", "ETA 0s", "ETA 2m40s"]


def test_other_models_show_their_three_largest_losses():
    losses = {"total_loss": 9.0, "loss_cls": 0.5, "loss_box_reg": 3.0, "loss_rpn_cls": 2.0, "loss_rpn_loc": 1.0}
    assert shown_losses(at(0, **losses)) == ["loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]


def test_memory_is_that_of_this_process():
    assert 2**24 < peak_memory(torch.device("cpu")) < 2**42


def test_nothing_is_written_without_a_new_iteration(lines):
    storage = at(5, **LOSSES)
    storage.iter = 6
    with storage:
        console().write()
        AllLosses(100).write()
    assert lines == []


def set_up_log(monkeypatch):
    """Set the loggers up as a training does; return the texts of terminal and file.

    Not a fixture: pytest sets `sys.stdout` anew when a test begins.
    """
    terminal, file = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name in ("detectron2", "sparse_detr"):
        logger = logging.getLogger(name)
        handlers = [logging.StreamHandler(terminal), logging.StreamHandler(file)]
        monkeypatch.setattr(logger, "handlers", handlers)
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "propagate", False)
    logging.getLogger("detectron2").manager._clear_cache()
    return terminal, file


def test_terminal_and_log_file_get_one_line_a_period_each(tmp_path, monkeypatch):
    terminal, file = set_up_log(monkeypatch)
    run = toy_run(tmp_path, model=ToyWithLosses(), scores=[1.0, 3.0, 2.0, 4.0], log_period=2)
    train(replace(run, settings=replace(run.settings, best_metric="bbox/AP")))
    short = [line for line in terminal.getvalue().splitlines() if line.startswith("iter ")]
    assert [line.split("  ")[0] for line in short] == ["iter 2/8", "iter 4/8", "iter 6/8", "iter 8/8"]
    assert "AP 3 (best 3)" in short[1]
    assert "AP 2 (best 3)" in short[2]
    assert "total_loss: " not in terminal.getvalue()
    assert file.getvalue().count("total_loss: ") == 4
    assert file.getvalue().count("loss_a_dn: ") == 4
    assert "iter 2/8" not in file.getvalue()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert sum("loss_a_dn" in line and "total_loss" in line for line in metrics) == 4


def test_the_log_shows_everything_again_after_the_training(tmp_path, monkeypatch):
    terminal, file = set_up_log(monkeypatch)
    train(toy_run(tmp_path, max_iter=1))
    ALL_LOSSES.info("said by another")
    assert "said by another" in terminal.getvalue()
    assert "said by another" in file.getvalue()
