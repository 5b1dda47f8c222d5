import errno
import os
import resource
import signal
import stat

import pytest
import torch

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, remove_leftovers, write_atomically, write_text_atomically


def names(folder):
    return sorted(os.listdir(folder))


def write_part_and_raise(error):
    def write(file):
        file.write(b"half")
        raise error

    return write


def test_a_written_file_holds_the_new_content_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")
    write_text_atomically(path, "neu: ä")
    assert path.read_text(encoding="utf-8") == "neu: ä"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_its_own_error(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_atomically(path, write_part_and_raise(error))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")]
)
def test_an_error_of_the_disk_names_the_file_and_the_remedy(tmp_path, code, remedy):
    path = tmp_path / "model.pth"
    path.write_text("old")
    with pytest.raises(UserError, match=f"model.pth.*{remedy}"):
        write_atomically(path, write_part_and_raise(OSError(code, os.strerror(code))))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.pth"]


@pytest.fixture
def small_files():
    """Limit the files of this process to 20,000 bytes, like a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("size", [1_000_000, 3])
def test_a_full_disk_in_the_middle_of_torch_save_is_one_clear_error(tmp_path, small_files, size):
    path = tmp_path / "model.pth"
    torch.save({"old": 1}, path)
    content = {"tensors": [torch.zeros(size) for _ in range(100)]}
    with pytest.raises(UserError, match="model.pth: the file is larger"):
        write_atomically(path, lambda file: torch.save(content, file))
    assert torch.load(path) == {"old": 1}
    assert names(tmp_path) == ["model.pth"]


def test_the_permissions_are_those_of_a_new_file_and_stay_at_a_rewrite(tmp_path):
    (tmp_path / "plain").touch()
    write_text_atomically(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o600)
    write_text_atomically(tmp_path / "new", "y")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_link_stays_a_link_and_a_device_is_written_in_place(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_text_atomically(link, "x")
    assert link.is_symlink()
    assert target.read_text() == "x"
    write_text_atomically("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_with_the_longest_name_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    write_text_atomically(path, "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("missing/a.txt", "folder is gone"),
        ("file/a.txt", "is a file, not a folder"),
        ("folder", "a folder has this name"),
    ],
)
def test_a_path_that_no_file_can_have_is_an_error_with_the_remedy(tmp_path, path, remedy):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=remedy):
        write_text_atomically(tmp_path / path, "x")


def test_a_folder_is_made_with_those_above_it(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert names(make_folder(tmp_path / "a" / "b")) == []


@pytest.mark.parametrize("path", ["file", "file/below", "dangling"])
def test_a_file_in_place_of_a_folder_is_an_error_with_the_remedy(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="choose another"):
        make_folder(tmp_path / path)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that nobody can write to")
def test_a_folder_that_cannot_be_written_is_an_error_with_the_remedy():
    with pytest.raises(UserError, match="cannot write the folder /proc/self"):
        make_folder("/proc/self")


def test_only_leftovers_of_killed_writes_are_removed(tmp_path):
    others = [".hidden.part", "a.part", ".0123456789abcdef.part.txt", "model.pth"]
    for name in [".0123456789abcdef.part", *others]:
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path) == [".0123456789abcdef.part"]
    assert names(tmp_path) == sorted(others)
