"""Two gloo processes give the same result as one."""

import pytest
import torch

from sparse_detr.config.run import TrainSettings
from sparse_detr.engine import training
from tests.engine import ranks


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return the results of each rank in each scenario, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run_scenarios(folder)

    def read(name):
        return [torch.load(folder / f"{name}_rank{rank}.pt", weights_only=True) for rank in range(ranks.WORLD_SIZE)]

    return {name: read(name) for name in ranks.SCENARIOS} | {"folder": folder}


def test_training_in_two_processes_equals_one_with_the_joint_batch(outcome, tmp_path):
    alone = ranks.train_toy(tmp_path)
    for together in outcome["toy"]:
        for name, weight in alone.items():
            torch.testing.assert_close(together[name], weight)


@pytest.mark.parametrize("empty", [False, True])
def test_detector_in_two_processes_has_the_gradients_of_the_joint_batch(outcome, empty):
    alone = ranks.detector_gradients(empty=empty)
    first, second = outcome[ranks.EMPTY if empty else ranks.FULL]
    for mine, theirs, joint in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, joint, rtol=1e-7, atol=1e-9)


def test_an_elastic_step_in_two_processes_has_the_gradients_of_the_joint_batch(outcome, tmp_path):
    alone = ranks.elastic_gradients(tmp_path)
    first, second = outcome[ranks.ELASTIC]
    assert alone["unused"] == first["unused"] == second["unused"]
    assert any(name.startswith("decoder.layers.1.") for name in alone["unused"])  # the layer that this step left out
    for mine, theirs, joint in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, joint, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("empty", [False, True])
def test_mean_of_the_losses_of_two_processes_is_the_loss_of_the_joint_batch(outcome, empty):
    alone = ranks.detector_gradients(empty=empty)["losses"]
    first, second = outcome[ranks.EMPTY if empty else ranks.FULL]
    for name, loss in alone.items():
        assert (first["losses"][name] + second["losses"][name]) / 2 == pytest.approx(loss, rel=1e-7, abs=1e-9), name


def test_every_rank_resumes_its_own_random_numbers(outcome):
    assert outcome["resume"] == [{"same weights": True, "one random state a rank": True}] * 2


def test_a_non_finite_number_on_one_rank_stops_all_with_the_same_message(outcome):
    first, second = outcome["nonfinite"]
    assert first == second
    assert first["error"] == "NonFiniteError"
    assert (
        "rank 1: loss loss_a, loss_b is not finite; first bad tensor: output of backbone (Linear)" in first["message"]
    )
    assert "rank 0" not in first["message"]
    assert [path.name for path in (outcome["folder"] / "nonfinite").glob("nonfinite*")] == [
        "nonfinite_iter_0000002_rank1.pth"
    ]


def test_a_signal_to_one_rank_stops_all_after_a_checkpoint(outcome):
    assert outcome["signal"] == [{"error": "SystemExit", "message": "143"}] * 2
    assert (outcome["folder"] / "signal" / "model_0000000.pth").exists()


@pytest.mark.parametrize("scenario", ["validation of a toy", "validation of a detector"])
def test_validation_losses_of_two_processes_are_those_of_one_on_the_main_process(outcome, scenario, tmp_path):
    alone = ranks.SCENARIOS[scenario](tmp_path)
    assert len(alone) > 2
    assert outcome[scenario] == [alone, {}]


def test_the_process_with_the_least_memory_decides_about_the_batch(outcome):
    # 4 images in each of 2 processes, where the config has 2 in all and a learning rate of 1e-4
    assert outcome["batch"] == [{"batch": 8, "rate": pytest.approx(2e-4)}] * 2


def test_two_processes_stop_early_at_the_same_iteration(outcome):
    assert outcome["training with validation"] == [{"iteration": 5}] * 2


@pytest.mark.parametrize("main_process", [True, False])
def test_all_ranks_save_and_the_main_process_alone_deletes(monkeypatch, main_process):
    monkeypatch.setattr(training.comm, "is_main_process", lambda: main_process)
    settings = TrainSettings(output_dir="", max_iter=1, device="cpu", checkpointer={"period": 3, "max_to_keep": 2})
    assert training._checkpoint_options(settings) == {"period": 3, "max_to_keep": 2 if main_process else None}
