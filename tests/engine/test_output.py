"""One training a folder, and one clear error when the folder cannot be written."""

import errno
import os
import signal
import subprocess

import pytest
import torch

from sparse_detr.engine.output import hold_folder
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from tests.engine.kill_driver import in_child
from tests.engine.toys import toy_run


def at_iteration(number, action, monkeypatch):
    run_step = Trainer.run_step

    def step(self):
        if self.iter == number:
            action()
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", step)


def test_a_second_training_in_the_same_folder_is_refused_with_the_holder(tmp_path):
    def second():
        with pytest.raises(UserError, match=rf"another training writes into .*\(process {os.getppid()} on "):
            train(toy_run(tmp_path))

    with hold_folder(str(tmp_path)):
        (tmp_path / "config.yaml").write_text("of the first")
        assert in_child(second) == 0
        assert (tmp_path / "config.yaml").read_text() == "of the first"
    assert in_child(lambda: train(toy_run(tmp_path))) == 0


def test_evaluating_in_the_folder_of_a_running_training_is_allowed(tmp_path):
    def evaluate():
        with hold_folder(str(tmp_path), alone=False):
            pass

    with hold_folder(str(tmp_path)):
        assert in_child(evaluate) == 0


def test_a_killed_training_leaves_no_lock_even_while_its_data_loading_process_lives(tmp_path):
    reader, writer = os.pipe()

    def die_with_a_child():
        with hold_folder(str(tmp_path)):
            child = os.fork()
            if child == 0:
                os.read(reader, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(die_with_a_child) == -signal.SIGKILL
    with hold_folder(str(tmp_path)):
        pass
    os.write(writer, b"x")


def test_the_folder_of_a_training_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out is a file, but a folder is needed"):
        train(toy_run(tmp_path / "out"))


def test_a_file_in_the_place_of_the_detections_is_found_before_training(tmp_path):
    (tmp_path / "inference").write_text("a file")
    with pytest.raises(UserError, match="inference is a file, but a folder is needed"):
        train(toy_run(tmp_path, scores=[1.0]))
    assert not list(tmp_path.glob("*.pth"))


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_a_checkpoint_keeps_the_old_one_and_says_so(tmp_path, monkeypatch, caplog):
    at_iteration(5, lambda: monkeypatch.setattr("sparse_detr.engine.checkpointer.torch.save", full), monkeypatch)
    with pytest.raises(
        UserError, match=r"model_0000005.pth: the disk is full; free .*up to .*model_0000003.pth is saved"
    ):
        train(toy_run(tmp_path))
    assert torch.load(tmp_path / "model_0000003.pth", weights_only=True)["iteration"] == 3
    assert sum(record.exc_info is not None for record in caplog.records) == 0


def test_metrics_that_cannot_be_written_are_one_error(tmp_path, monkeypatch, caplog):
    at_iteration(5, lambda: monkeypatch.setattr("detectron2.utils.events.JSONWriter.write", full), monkeypatch)
    with pytest.raises(UserError, match=r"the disk is full; .*model_0000005.pth is saved"):
        train(toy_run(tmp_path, log_period=6))
    assert sum(record.exc_info is not None for record in caplog.records) == 0


def test_a_folder_that_vanishes_during_training_is_one_error(tmp_path, caplog, monkeypatch):
    folder = tmp_path / "out"
    at_iteration(5, lambda: folder.rename(tmp_path / "elsewhere"), monkeypatch)
    with pytest.raises(
        UserError, match="model_0000005.pth: its folder is gone.*no checkpoint of this training is saved"
    ):
        train(toy_run(folder))
    assert sum(record.exc_info is not None for record in caplog.records) == 0


def test_a_folder_that_vanishes_under_tensorboard_is_one_error(tmp_path, capfd, monkeypatch):
    folder = tmp_path / "out"
    at_iteration(3, lambda: folder.rename(tmp_path / "elsewhere"), monkeypatch)
    with pytest.raises(UserError, match="its folder is gone"):
        train(toy_run(folder, checkpointer={"period": 10**6}, log_period=1, max_iter=10**5))
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 300 kB and return its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_training_on_a_disk_that_fills_up_ends_with_one_error_and_whole_files(small_disk, caplog):
    with pytest.raises(UserError, match="the disk is full"):
        train(toy_run(small_disk, max_iter=60, log_period=1))
    files = list(small_disk.glob("*.pth"))
    assert files
    for file in files:
        torch.load(file, weights_only=True)
    assert sum(record.exc_info is not None for record in caplog.records) == 0
