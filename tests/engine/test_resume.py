"""A training that was stopped and resumed equals one that was never stopped."""

import dataclasses
import json
import logging

import pytest
import torch
from detectron2.solver.lr_scheduler import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler

from sparse_detr.engine.best import best_score
from sparse_detr.engine.checkpointer import LastCheckpoint, find_last_checkpoint
from sparse_detr.engine.hooks import KeepBest
from sparse_detr.engine.output import what_is_saved
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.training import evaluate_only, train
from sparse_detr.engine.weights import load_weights
from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector, toy_run

EMA = {"ema_decay": 0.9}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Interruption(RuntimeError):
    pass


def train_interrupted(run, monkeypatch, *, before):
    """Train until a power failure before an iteration."""
    run_step = Trainer.run_step

    def failing(self):
        if self.iter == before:
            raise Interruption
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", failing)
    with pytest.raises(Interruption):
        train(run)
    monkeypatch.setattr(Trainer, "run_step", run_step)


def assert_same_checkpoints(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same_checkpoints(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for a, b in zip(value, other[key], strict=True):
                assert_same_checkpoints(a, b)
        elif key != "numpy":  # a tuple with a tensor
            assert value == other[key], key


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    return caplog


def final(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("settings", [{}, EMA, {"accumulate": 2}, {"precision": "fp16"}, {"precision": "bf16"}])
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, settings, device):
    settings = {**settings, "device": device}
    scores = [1.0, 2.0, 3.0, 4.0]
    torch.manual_seed(1)
    train(toy_run(tmp_path / "whole", scores=scores, **settings))

    torch.manual_seed(1)
    train_interrupted(toy_run(tmp_path / "parts", scores=scores, **settings), monkeypatch, before=5)
    torch.manual_seed(99)
    train(toy_run(tmp_path / "parts", scores=scores[2:], **settings), resume_last=True)

    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_evaluating_does_not_change_the_training(tmp_path):
    for name, scores in (("with", [1.0] * 4), ("without", [])):
        torch.manual_seed(1)
        train(toy_run(tmp_path / name, scores=scores))
    assert_same_checkpoints(final(tmp_path / "with")["model"], final(tmp_path / "without")["model"])


def test_best_score_survives_a_resume(tmp_path, monkeypatch):
    train_interrupted(toy_run(tmp_path, scores=[1.0, 9.0]), monkeypatch, before=5)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)

    train(toy_run(tmp_path, scores=[5.0, 6.0]), resume_last=True)

    assert json.loads((tmp_path / "model_best.json").read_text()) == {"metric": "bbox/AP", "value": 9.0, "iteration": 3}
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == best["iteration"] == 3


def test_new_training_in_an_old_folder_ignores_the_old_best_score(tmp_path):
    train(toy_run(tmp_path, scores=[9.0] * 4))
    train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0, 4.0]))
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 4.0


def test_no_training_resumes_from_the_best_model(tmp_path, monkeypatch):
    train_interrupted(toy_run(tmp_path, scores=[1.0, 9.0]), monkeypatch, before=5)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"


def test_average_of_weights_is_evaluated_under_its_own_name(tmp_path):
    results = train(toy_run(tmp_path, scores=[float(i) for i in range(8)], **EMA))
    assert results == {"bbox": {"AP": 6.0}, "ema/bbox": {"AP": 7.0}}


def test_averaged_weights_of_a_checkpoint_are_evaluated(tmp_path):
    train(toy_run(tmp_path, **EMA))
    results = evaluate_only(toy_run(tmp_path, scores=[1.0, 2.0], **EMA), resume_last=True)
    assert results == {"bbox": {"AP": 1.0}, "ema/bbox": {"AP": 2.0}}


def test_checkpoint_without_averaged_weights_is_evaluated_without(tmp_path):
    train(toy_run(tmp_path))
    results = evaluate_only(toy_run(tmp_path, scores=[1.0, 2.0], **EMA), resume_last=True)
    assert results == {"bbox": {"AP": 1.0}}


def test_average_of_weights_follows_its_definition(tmp_path):
    train(toy_run(tmp_path, **EMA, max_iter=3, checkpointer={"period": 1}))
    files = [torch.load(tmp_path / f"model_{i:07d}.pth", weights_only=True) for i in range(3)]
    weights = [file["model"]["head.weight"] for file in files]
    expected = 0.9 * (0.9 * weights[0] + 0.1 * weights[1]) + 0.1 * weights[2]
    torch.testing.assert_close(files[2]["ema"]["module.head.weight"], expected)


@pytest.fixture
def trained(tmp_path):
    """Return the folder of a training with three numbered checkpoints and a final one."""
    train(toy_run(tmp_path / "out", max_iter=6))
    return tmp_path / "out"


def truncate(file, size=500):
    file.write_bytes(file.read_bytes()[:size])


def flip(file):
    content = bytearray(file.read_bytes())
    weight = torch.load(file, weights_only=True)["model"]["head.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 255
    file.write_bytes(content)


BROKEN_POINTERS = {
    "empty": b"",
    "blank": b" \n",
    "binary": bytes(range(256)),
    "zeros": bytes(16),
    "of another name": b"model_0009999.pth",
    "of the best model": b"model_best.pth",
    "of the config": b"config.yaml",
    "outside": b"../other/model_final.pth",
    "absolute": b"/elsewhere/model_final.pth",
    "a folder": b".",
    "very long": b"x" * 5000,
}


@pytest.mark.parametrize("pointer", [*BROKEN_POINTERS.values(), None], ids=[*BROKEN_POINTERS, "missing"])
def test_a_broken_last_checkpoint_is_passed_over_for_the_newest_whole_file(trained, pointer):
    file = trained / "last_checkpoint"
    file.unlink() if pointer is None else file.write_bytes(pointer)
    last = find_last_checkpoint(str(trained))
    assert last.path == str(trained / "model_final.pth")
    assert list(last.passed_over) == ["last_checkpoint"]


def test_a_last_checkpoint_that_is_a_folder_is_passed_over(trained):
    (trained / "last_checkpoint").unlink()
    (trained / "last_checkpoint").mkdir()
    assert find_last_checkpoint(str(trained)).path == str(trained / "model_final.pth")


@pytest.mark.parametrize("damage", [truncate, flip, lambda file: truncate(file, 0), lambda file: file.write_text("no")])
def test_a_broken_newest_checkpoint_is_passed_over_and_named(trained, damage, listen):
    damage(trained / "model_final.pth")
    damage(trained / "model_0000005.pth")
    last = find_last_checkpoint(str(trained))
    assert last.path == str(trained / "model_0000003.pth")
    assert list(last.passed_over) == ["model_final.pth", "model_0000005.pth"]
    assert "going on from" in listen.text
    assert "model_0000005.pth: " in listen.text


def test_no_training_resumes_from_weights_without_training_state(trained):
    torch.save({"model": final(trained)["model"], "iteration": 5}, trained / "model_final.pth")
    last = find_last_checkpoint(str(trained))
    assert last.path == str(trained / "model_0000005.pth")
    assert last.passed_over == {"model_final.pth": "it holds no state of a training"}


def test_a_numbered_checkpoint_of_a_later_iteration_is_newer_than_the_final_one(trained):
    train(toy_run(trained, max_iter=10, checkpointer={"period": 2}), resume_last=True)
    (trained / "model_0000009.pth").rename(trained / "model_final.pth")
    (trained / "model_0000005.pth").replace(trained / "model_final.pth")
    (trained / "last_checkpoint").unlink()
    assert find_last_checkpoint(str(trained)).path == str(trained / "model_0000007.pth")


def test_a_training_resumes_from_the_named_checkpoint_and_newer_ones_are_listed(trained):
    (trained / "last_checkpoint").write_text("model_0000001.pth\n")
    reason = "it is newer than model_0000001.pth, which last_checkpoint names"
    newer = {"model_0000005.pth": reason, "model_0000003.pth": reason}
    assert find_last_checkpoint(str(trained)) == LastCheckpoint(str(trained / "model_0000001.pth"), 1, newer)


def test_a_folder_with_only_broken_checkpoints_is_an_error_and_stays_as_it_is(trained):
    for file in trained.glob("model_*.pth"):
        truncate(file)
    before = {file.name: file.stat().st_mtime_ns for file in trained.glob("model_*")}
    with pytest.raises(UserError, match=r"(?s)no whole checkpoint.*model_final.pth .* truncated.*remove these files"):
        train(toy_run(trained), resume_last=True)
    assert {file.name: file.stat().st_mtime_ns for file in trained.glob("model_*")} == before


def test_resuming_without_any_checkpoint_says_that_it_starts_anew(tmp_path, listen):
    train(toy_run(tmp_path, max_iter=1), resume_last=True)
    assert f"no checkpoint in {tmp_path}: the training starts at iteration 0" in listen.text


@pytest.mark.parametrize("damage", [truncate, lambda file: file.unlink()])
def test_a_final_checkpoint_that_was_lost_is_written_again(trained, damage):
    whole = final(trained)
    damage(trained / "model_final.pth")
    train(toy_run(trained, max_iter=6), resume_last=True)
    assert_same_checkpoints(whole, final(trained))
    assert (trained / "last_checkpoint").read_text() == "model_final.pth"


def test_lost_final_and_lost_numbered_checkpoints_are_trained_again(trained):
    whole = final(trained)
    (trained / "model_final.pth").unlink()
    truncate(trained / "model_0000005.pth")
    train(toy_run(trained, max_iter=6), resume_last=True)
    assert_same_checkpoints(whole, final(trained))


def test_resuming_beyond_the_last_iteration_is_an_error_with_both_numbers(trained):
    with pytest.raises(UserError, match="has 6 iterations, more than the 4 of the config; raise train.max_iter"):
        train(toy_run(trained, max_iter=4), resume_last=True)


def test_the_remains_of_a_killed_write_are_removed_at_the_next_start(trained):
    (trained / ".0123456789abcdef.part").write_bytes(b"half")
    train(toy_run(trained, max_iter=6), resume_last=True)
    assert not list(trained.glob(".*.part"))


def test_weights_of_another_model_are_refused(tmp_path):
    model = ToyDetector()
    model.head = torch.nn.Linear(8, 3)
    train(toy_run(tmp_path, model=model, max_iter=2))
    with pytest.raises(UserError, match="head.weight: file \\[3, 8\\], model \\[1, 8\\]"):
        train(toy_run(tmp_path, init_checkpoint=str(tmp_path / "model_final.pth")))


class ToyWithClasses(ToyDetector):
    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.class_embed = torch.nn.Linear(8, num_classes)

    def forward(self, batch):
        return {**super().forward(batch), "loss_class": self.class_embed.weight.square().sum()}


def test_fine_tuning_skips_and_lists_the_rows_of_other_classes(tmp_path, caplog, monkeypatch):
    train(toy_run(tmp_path, model=ToyWithClasses(num_classes=5), max_iter=2))
    model = ToyWithClasses(num_classes=2)
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    load_weights(model, str(tmp_path / "model_final.pth"), skip_other_classes=True)
    assert "these rows of it are skipped: class_embed.weight (5, 8), class_embed.bias (5,)" in caplog.text
    assert torch.equal(model.head.weight, final(tmp_path)["model"]["head.weight"])


def test_resuming_with_another_number_of_classes_names_both(tmp_path):
    train(toy_run(tmp_path, model=ToyWithClasses(num_classes=5), max_iter=2))
    with pytest.raises(UserError, match="the checkpoint has 5 classes and the model 2"):
        train(toy_run(tmp_path, model=ToyWithClasses(num_classes=2)), resume_last=True)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [("nowhere.pth", "check the path"), ("mobilenet_v2_imagenet.pth", "python -m sparse_detr.data.sample")],
)
def test_a_missing_checkpoint_is_named_with_the_remedy(path, remedy):
    with pytest.raises(UserError, match=f"no checkpoint '{path}'.*{remedy}"):
        load_weights(ToyWithClasses(num_classes=2), path, skip_other_classes=True)


@pytest.mark.parametrize("loss", ["weights", "json", "json is damaged", "weights are damaged"])
def test_a_best_score_counts_only_with_its_weights(tmp_path, monkeypatch, loss):
    train_interrupted(toy_run(tmp_path, scores=[1.0, 9.0]), monkeypatch, before=5)
    weights, beside = tmp_path / "model_best.pth", tmp_path / "model_best.json"
    {
        "weights": weights.unlink,
        "json": beside.unlink,
        "json is damaged": lambda: beside.write_bytes(b"\xff{"),
        "weights are damaged": lambda: truncate(weights),
    }[loss]()
    train(toy_run(tmp_path, scores=[5.0, 6.0]), resume_last=True)
    best = torch.load(weights, weights_only=True)["best"]
    assert json.loads(beside.read_text()) == best
    assert best["value"] == (9.0 if "json" in loss else 6.0)


def test_scores_lost_between_a_checkpoint_and_the_best_model_are_computed_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(KeepBest, "_save", lambda *arguments: (_ for _ in ()).throw(Interruption))
        with pytest.raises(Interruption):
            train(toy_run(tmp_path, scores=[9.0]))
    assert not (tmp_path / "model_best.pth").exists()
    train(toy_run(tmp_path, scores=[9.0, 2.0, 3.0, 4.0]), resume_last=True)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best["best"] == {"metric": "bbox/AP", "value": 9.0, "iteration": 1}
    same = torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]
    assert_same_checkpoints(best["model"], same)


def test_a_score_beside_weights_of_another_iteration_is_ignored(tmp_path):
    checkpoint = {"model": {}, "iteration": 3}
    torch.save(checkpoint, tmp_path / "model_best.pth")
    for iteration, expected in ((3, 9.0), (1, None)):
        score = {"metric": "bbox/AP", "value": 9.0, "iteration": iteration}
        (tmp_path / "model_best.json").write_text(json.dumps(score))
        assert best_score(str(tmp_path), "bbox/AP", 4) == expected


def test_the_best_averaged_score_keeps_the_averaged_weights(tmp_path):
    # scores of the plain weights and of the average, in turns
    run = toy_run(tmp_path, scores=[1.0, 5.0, 9.0, 3.0, 1.0, 7.0, 1.0, 6.0], best_metric="ema/bbox/AP", **EMA)
    train(run)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    at_best = torch.load(tmp_path / "model_0000005.pth", weights_only=True)
    assert best["best"] == {"metric": "ema/bbox/AP", "value": 7.0, "iteration": 5}
    assert best["weights"] == "averaged"
    for name, value in best["model"].items():
        assert torch.equal(value, at_best["ema"][f"module.{name}"]), name
    assert not torch.equal(best["model"]["head.weight"], at_best["model"]["head.weight"])
    assert "trainer" not in best


def test_the_best_plain_score_keeps_the_plain_weights(tmp_path):
    train(toy_run(tmp_path, scores=[1.0, 5.0, 9.0, 3.0], **EMA))
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    plain = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    assert best["weights"] == "plain"
    assert_same_checkpoints(best["model"], plain["model"])


def test_evaluation_without_data_or_weights_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="nothing to evaluate on.*--val-json"):
        evaluate_only(toy_run(tmp_path))
    with pytest.raises(UserError, match="no weights to evaluate.*train.init_checkpoint=FILE"):
        evaluate_only(toy_run(tmp_path, scores=[1.0]))


def test_random_weights_are_evaluated_on_demand_with_a_warning(tmp_path, listen):
    assert evaluate_only(toy_run(tmp_path, scores=[1.0]), random_weights=True) == {"bbox": {"AP": 1.0}}
    assert "no checkpoint is named: the scores below are those of RANDOM weights" in listen.text


def test_evaluating_weights_that_are_not_finite_names_the_tensor(tmp_path):
    train(toy_run(tmp_path, max_iter=2))
    broken = final(tmp_path)
    broken["model"]["head.weight"][0, 0] = float("nan")
    torch.save(broken, tmp_path / "nan.pth")
    with pytest.raises(UserError, match="head.weight"):
        evaluate_only(toy_run(tmp_path, scores=[1.0], init_checkpoint=str(tmp_path / "nan.pth")))


def test_averaged_weights_alone_can_be_evaluated_and_trained_from(tmp_path):
    train(toy_run(tmp_path / "a", **EMA))
    file = str(tmp_path / "a" / "model_final.pth")
    model = ToyDetector()
    assert evaluate_only(toy_run(tmp_path, scores=[1.0], model=model, init_checkpoint=file, **EMA), ema=True)
    assert torch.equal(model.head.weight, final(tmp_path / "a")["ema"]["module.head.weight"])
    model, seen = ToyDetector(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.head.weight.detach().clone()))
    train(toy_run(tmp_path / "b", model=model, init_checkpoint=file, max_iter=1), ema=True)
    assert torch.equal(seen[0], final(tmp_path / "a")["ema"]["module.head.weight"])


def test_a_backbone_alone_is_not_evaluated(tmp_path):
    backbone = {f"backbone.{name}": value for name, value in ToyDetector().backbone.state_dict().items()}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="holds the backbone alone.*trained weights"):
        evaluate_only(toy_run(tmp_path, scores=[1.0], init_checkpoint=str(tmp_path / "backbone.pth")))


def test_training_killed_before_its_first_checkpoint_does_not_resume_from_an_earlier_one(tmp_path, monkeypatch):
    train(toy_run(tmp_path))
    train_interrupted(toy_run(tmp_path), monkeypatch, before=0)

    with pytest.raises(UserError, match="stopped before its first checkpoint"):
        train(toy_run(tmp_path), resume_last=True)


def test_resume_passes_over_later_checkpoints_of_an_earlier_training(tmp_path, monkeypatch):
    train(toy_run(tmp_path, checkpointer={"period": 1}))
    train_interrupted(toy_run(tmp_path, checkpointer={"period": 1}), monkeypatch, before=3)
    (tmp_path / "last_checkpoint").unlink()

    last = find_last_checkpoint(str(tmp_path))

    assert last.path == str(tmp_path / "model_0000002.pth")
    assert "earlier training" in last.passed_over["model_final.pth"]


def test_old_checkpoints_are_still_removed_after_a_resume(tmp_path, monkeypatch):
    settings = {"checkpointer": {"period": 1, "max_to_keep": 2}}
    train_interrupted(toy_run(tmp_path, **settings), monkeypatch, before=4)
    train(toy_run(tmp_path, **settings), resume_last=True)

    numbered = sorted(path.name for path in tmp_path.glob("model_0*.pth"))
    last = torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"]

    assert numbered == [f"model_{iteration:07d}.pth" for iteration in (last - 1, last)]


def test_killed_data_loading_process_is_one_error_that_says_what_is_saved(tmp_path, monkeypatch):
    def killed(self):
        if self.iter == 3:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        return step(self)

    step = Trainer.run_step
    monkeypatch.setattr(Trainer, "run_step", killed)

    with pytest.raises(
        UserError, match=r"data-loading process has died .*signal: Killed\).*model_0000001.pth is saved"
    ):
        train(toy_run(tmp_path))


def test_without_last_checkpoint_the_error_names_the_newest_checkpoint(tmp_path, monkeypatch):
    train_interrupted(toy_run(tmp_path), monkeypatch, before=5)
    (tmp_path / "last_checkpoint").unlink()

    assert "model_0000003.pth is saved" in what_is_saved(str(tmp_path))


def test_resume_beyond_the_end_of_a_torch_schedule_is_refused_with_the_remedy(tmp_path):
    def run(max_iter):
        def build(optimizer):
            return LRMultiplier(
                optimizer, MultiStepParamScheduler([1.0], num_updates=max_iter, milestones=[]), max_iter
            )

        return dataclasses.replace(toy_run(tmp_path, max_iter=max_iter), build_schedule=build)

    train(run(4))

    with pytest.raises(UserError, match="4 iterations, more than the 1 of the config"):
        train(run(1), resume_last=True)
