"""Reading checkpoint files: what is read, and what the refusals say."""

import pickle
import zipfile
from argparse import Namespace

import pytest
import torch

from sparse_detr.checkpoint import load_file
from sparse_detr.errors import UserError


class NotAllowed:
    """Something that only code could bring back."""


def test_public_files_with_their_arguments_are_read(tmp_path):
    path = tmp_path / "public.pth"
    torch.save({"model": {"w": torch.ones(2)}, "args": Namespace(rho=0.1), "epoch": 49}, path)
    checkpoint = load_file(path)
    assert checkpoint["args"].rho == 0.1
    assert checkpoint["model"]["w"].tolist() == [1, 1]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*absent\.pth"):
        load_file(tmp_path / "absent.pth")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_a_truncated_file_is_named_with_its_size(tmp_path, keep):
    path = tmp_path / "cut.pth"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"cut\.pth \({keep:,} bytes\) is truncated or no checkpoint"):
        load_file(path)


@pytest.mark.parametrize(
    "content", [b"<html>404 not found</html>", b"version https://git-lfs\n", b"\x80\x02K\x01.", bytes(64)]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"page\.pth"):
        load_file(path)


def test_objects_that_need_code_are_refused_by_name(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save({"model": NotAllowed()}, path)
    with pytest.raises(UserError, match="could run code.*NotAllowed"):
        load_file(path)


def test_the_legacy_format_is_checked_alike(tmp_path):
    path = tmp_path / "legacy.pth"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    assert load_file(path)["w"].sum() == 1000
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated"):
        load_file(path)


def test_an_archive_around_a_checkpoint_is_named_as_such(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "inner.pth")
    path = tmp_path / "published.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "inner.pth", "focus/inner.pth")
    with pytest.raises(UserError, match=r"published\.zip is an archive; unpack it and give focus/inner\.pth"):
        load_file(path)


def test_model_zoo_pickles_are_left_to_detectron2(tmp_path):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {}, "__author__": "Detectron2 Model Zoo"}))
    with pytest.raises(UserError, match="Detectron2's checkpointer"):
        load_file(path)


def test_a_single_tensor_is_no_checkpoint(tmp_path):
    path = tmp_path / "tensor.pth"
    torch.save(torch.ones(1), path)
    with pytest.raises(UserError, match="holds a Tensor"):
        load_file(path)
