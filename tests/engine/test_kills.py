"""Whenever a training is killed, its folder holds whole files, and the resumed training ends like one never killed."""

import json
import random
import signal

import pytest
import torch

from tests.engine.kill_driver import (
    die_in_write,
    in_child,
    train_as_command,
    train_until_killed,
    weights_and_state,
)
from tests.engine.test_resume import assert_same_checkpoints


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert in_child(lambda: train_as_command(folder)) == 0
    return folder


def assert_all_whole(folder):
    for file in folder.glob("*.pth"):
        torch.load(file, weights_only=True)
    if (folder / "model_best.json").exists():
        best = torch.load(folder / "model_best.pth", weights_only=True)
        assert json.loads((folder / "model_best.json").read_text()) == best["best"]


def test_every_kill_in_a_write_leaves_whole_files_and_the_end_is_the_same(tmp_path, undisturbed):
    for write in range(1, 6):  # config, checkpoint, pointer, best model, its score
        folder = tmp_path / str(write)

        def work(write=write, folder=folder):
            die_in_write(write, [0.0, 0.5, 1.0, 2.0][write % 4])
            train_as_command(folder)

        assert in_child(work) == -signal.SIGKILL
        assert_all_whole(folder)
        assert in_child(lambda folder=folder: train_as_command(folder)) == 0
        assert_all_whole(folder)
        assert not list(folder.glob(".*.part"))
        assert_same_checkpoints(weights_and_state(undisturbed), weights_and_state(folder))


def test_a_training_that_is_killed_again_and_again_ends_the_same(tmp_path, undisturbed):
    chance = random.Random(4)
    for kill in range(6):
        train_until_killed(tmp_path, chance, in_write=kill % 3 == 0)
        assert_all_whole(tmp_path)
    assert in_child(lambda: train_as_command(tmp_path)) == 0
    assert_same_checkpoints(weights_and_state(undisturbed), weights_and_state(tmp_path))
