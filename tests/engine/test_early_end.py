"""A training ends early when its score no longer improves or its time is over, cleanly and resumably."""

import json
import logging
from itertools import count

import pytest
import torch

from sparse_detr.config.duration import duration_text, seconds_in
from sparse_detr.engine.best import improvement, last_scored
from sparse_detr.engine.early_end import Progress, StopAfterTime, StopWithoutProgress
from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from tests.engine.test_resume import assert_same_checkpoints, final, train_interrupted
from tests.engine.toys import toy_run


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def stopping(patience, **options):
    return {"early_stopping": {"patience": patience, "metric": None, "min_improvement": 0.0, **options}}


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h30m", 9000), ("45m", 2700), ("90s", 90), ("1h1m1s", 3661), ("100m", 6000)]
)
def test_a_time_is_hours_minutes_and_seconds(text, seconds):
    assert seconds_in(text) == seconds
    assert seconds_in(duration_text(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "2", "0s", "30m2h", "1d", "-5m", "2.5h", "2 h"])
def test_any_other_text_is_no_time(text):
    with pytest.raises(UserError, match="is no time; give a time such as 2h30m"):
        seconds_in(text)


def test_progress_counts_evaluations_since_the_best_score():
    progress = Progress("bbox/AP")
    waited = []
    for index, value in enumerate([10.0, 12.0, 12.0, float("nan"), 11.0, 12.1]):
        progress.count(value, done=100 * (index + 1))
        waited.append(progress.waited)
    assert waited == [0, 0, 1, 2, 3, 0]
    assert (progress.best, progress.best_at, progress.counted) == (12.1, 600, 600)


def test_an_improvement_must_be_larger_than_the_least_one():
    progress = Progress("bbox/AP")
    for index, value in enumerate([10.0, 10.4, 10.5, 10.6]):
        progress.count(value, done=index + 1, min_improvement=0.5)
    assert (progress.best, progress.best_at, progress.waited) == (10.6, 4, 0)


def test_of_a_loss_smaller_is_better():
    assert improvement("validation/total_loss", 2.0, 3.0) == 1.0
    assert improvement("validation/loss_class", 3.0, 2.0) == -1.0
    assert improvement("bbox/AP", 3.0, 2.0) == 1.0


def test_training_ends_after_the_evaluations_without_improvement(tmp_path, listen):
    # evaluations after 2, 4, 6, ... iterations; the best one is the second
    results = train(toy_run(tmp_path, scores=[1.0, 5.0, 4.0, 5.0, 9.0], max_iter=100, **stopping(2)))
    assert final(tmp_path)["iteration"] == 7
    assert results == {"bbox": {"AP": 5.0}}  # evaluated once after the last iteration
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (
        "the training ends after 8 iterations: bbox/AP has not improved in 2 evaluations (best: 5, after 4 iterations)"
        in listen.text
    )
    assert json.loads((tmp_path / "model_best.json").read_text())["iteration"] == 3
    assert last_scored(str(tmp_path)) == 8


def test_training_that_improves_goes_on_to_its_last_iteration(tmp_path):
    train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0, 4.0], **stopping(1)))
    assert final(tmp_path)["iteration"] == 7


def test_small_improvements_do_not_count(tmp_path):
    scores = [1.0, 1.3, 1.4, 2.0, 3.0]
    train(toy_run(tmp_path, scores=scores, max_iter=10, **stopping(2, min_improvement=0.5)))
    assert final(tmp_path)["iteration"] == 5


def test_another_score_than_that_of_the_best_model_can_be_watched(tmp_path):
    # plain weights and average in turns
    scores = [1.0, 5.0, 2.0, 4.0, 3.0, 3.0, 4.0, 2.0]
    options = {"ema_decay": 0.9, **stopping(2, metric="ema/bbox/AP")}
    train(toy_run(tmp_path, scores=scores, max_iter=20, **options))
    assert final(tmp_path)["iteration"] == 5


def test_a_score_that_is_not_there_stops_nothing_and_is_named(tmp_path, listen):
    train(toy_run(tmp_path, scores=[1.0] * 4, **stopping(1, metric="segm/AP")))
    assert final(tmp_path)["iteration"] == 7
    assert "early stopping cannot count: there is no score segm/AP; the scores are bbox/AP" in listen.text


@pytest.mark.parametrize("before", [3, 5, 7])
@pytest.mark.parametrize("checkpoints", [2, 3])
def test_a_resumed_training_stops_where_the_uninterrupted_one_does_bit_for_bit(
    tmp_path, monkeypatch, before, checkpoints
):
    scores = [3.0, 5.0, 4.0, 5.0, 1.0, 2.0]
    options = {"max_iter": 30, "checkpointer": {"period": checkpoints}, **stopping(3)}
    torch.manual_seed(1)
    train(toy_run(tmp_path / "whole", scores=scores, **options))

    torch.manual_seed(1)
    train_interrupted(toy_run(tmp_path / "parts", scores=scores, **options), monkeypatch, before=before)
    start = before // checkpoints * checkpoints
    torch.manual_seed(99)
    train(toy_run(tmp_path / "parts", scores=scores[start // 2 :], **options), resume_last=True)

    assert final(tmp_path / "whole")["iteration"] == 9
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_scores_that_were_lost_before_a_resume_are_counted(tmp_path, monkeypatch):
    scores, options = [3.0, 2.0, 1.0, 0.0], {"max_iter": 30, **stopping(3)}
    train_interrupted(toy_run(tmp_path, scores=scores, **options), monkeypatch, before=5)
    (tmp_path / ".last_scored").unlink()
    train(toy_run(tmp_path, scores=scores[1:], **options), resume_last=True)
    assert final(tmp_path)["iteration"] == 7


def test_a_kill_between_the_last_score_and_the_final_checkpoint_loses_nothing(tmp_path, monkeypatch):
    scores, options = [3.0, 2.0, 1.0], {"max_iter": 30, **stopping(1)}

    def killed(self, why):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(StopWithoutProgress, "_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(toy_run(tmp_path, scores=scores, **options))
    assert not (tmp_path / "model_final.pth").exists()
    train(toy_run(tmp_path, scores=scores, **options), resume_last=True)
    assert final(tmp_path)["iteration"] == 3


def test_resuming_an_ended_training_does_not_go_on_until_the_patience_is_raised(tmp_path, listen):
    options = {"max_iter": 30}
    train(toy_run(tmp_path, scores=[3.0, 2.0, 1.0], **options, **stopping(2)))
    results = train(toy_run(tmp_path, scores=[1.0], **options, **stopping(2)), resume_last=True)
    assert final(tmp_path)["iteration"] == 5
    assert results == {"bbox": {"AP": 1.0}}
    assert "the training does not go on after 6 iterations" in listen.text
    assert "raise train.early_stopping.patience (SOLVER.EARLY_STOPPING.PATIENCE)" in listen.text

    train(toy_run(tmp_path, scores=[2.0, 1.0], **options, **stopping(4)), resume_last=True)
    assert final(tmp_path)["iteration"] == 9


def test_another_metric_after_a_resume_counts_anew(tmp_path, listen):
    options = {"max_iter": 12, "ema_decay": 0.9}
    train(toy_run(tmp_path, scores=[3.0] * 8, **options, **stopping(2)))
    assert final(tmp_path)["iteration"] == 5
    scores = [1.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    train(toy_run(tmp_path, scores=scores, **options, **stopping(2, metric="ema/bbox/AP")), resume_last=True)
    assert "early stopping counts anew: it watches ema/bbox/AP, and the checkpoint counted bbox/AP" in listen.text
    assert final(tmp_path)["iteration"] == 9  # 3 of before, then 2, 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": []}, "counts evaluations, and there are none; give validation data and train.eval_period=1000"),
        ({"eval_period": 0}, "counts evaluations, and there are none"),
        ({"best_metric": "ema/bbox/AP"}, "no weights are averaged; add train.ema.enabled=True"),
    ],
)
def test_early_stopping_that_would_never_count_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train(toy_run(tmp_path, **{"scores": [1.0], **settings}, **stopping(2)))


class Clock:
    """Goes one second further with every training step."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        init, step = StopAfterTime.__init__, StopAfterTime.after_step
        monkeypatch.setattr(StopAfterTime, "__init__", lambda hook, **o: init(hook, **o, clock=lambda: self.now))

        def tick(hook):
            self.now += 1.0
            step(hook)

        monkeypatch.setattr(StopAfterTime, "after_step", tick)


def test_training_ends_when_its_time_is_over_with_checkpoint_evaluation_and_reason(tmp_path, monkeypatch, listen):
    Clock(monkeypatch)
    results = train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0], max_iter=100, max_time=5))
    assert final(tmp_path)["iteration"] == 4
    assert final(tmp_path)["trainer"]["hooks"]["StopAfterTime"] == {"seconds": 5.0}
    assert results == {"bbox": {"AP": 3.0}}
    assert "the training ends after 5 iterations: its time is over (5s of 5s)" in listen.text


def test_time_over_at_an_evaluation_evaluates_once(tmp_path, monkeypatch):
    Clock(monkeypatch)
    assert train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0], max_iter=100, max_time=4)) == {"bbox": {"AP": 2.0}}


def test_a_resumed_training_has_the_rest_of_its_time(tmp_path, monkeypatch):
    Clock(monkeypatch)
    options = {"max_iter": 100, "max_time": 7}
    torch.manual_seed(1)
    train(toy_run(tmp_path / "whole", **options))
    torch.manual_seed(1)
    train_interrupted(toy_run(tmp_path / "parts", **options), monkeypatch, before=5)
    torch.manual_seed(99)
    train(toy_run(tmp_path / "parts", **options), resume_last=True)
    assert final(tmp_path / "parts")["iteration"] == 6
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_a_resume_without_time_left_does_not_train(tmp_path, monkeypatch, listen):
    Clock(monkeypatch)
    train(toy_run(tmp_path, max_iter=100, max_time=5))
    (tmp_path / "model_final.pth").unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    train(toy_run(tmp_path, max_iter=100, max_time=4), resume_last=True)
    assert final(tmp_path)["iteration"] == 3
    assert "does not go on after 4 iterations: its time is over (4s of 4s); raise train.max_time" in listen.text


def test_without_a_limit_no_time_is_saved(tmp_path):
    train(toy_run(tmp_path))
    assert "StopAfterTime" not in final(tmp_path)["trainer"].get("hooks", {})


def test_metrics_have_the_last_evaluation_of_an_early_end(tmp_path):
    train(toy_run(tmp_path, scores=[3.0, 2.0, 1.0], max_iter=100, **stopping(2)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["bbox/AP"] for line in lines if "bbox/AP" in line][-1] == 1.0


def test_a_clock_that_stands_still_never_ends_a_training(tmp_path, monkeypatch):
    ticks = count(0, 0)
    init = StopAfterTime.__init__
    monkeypatch.setattr(StopAfterTime, "__init__", lambda hook, **o: init(hook, **o, clock=lambda: next(ticks)))
    train(toy_run(tmp_path, max_time=1))
    assert final(tmp_path)["iteration"] == 7
