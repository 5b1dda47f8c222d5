"""Reading of checkpoint files: which are read, and what the errors of the others say."""

import io
import os
import pickle
import random
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch

from sparse_detr.checkpoint import load_file
from sparse_detr.checkpoint.unwrap import unwrap
from sparse_detr.errors import UserError


class NotAllowed:
    """An object that can only be unpickled by running code."""


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
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"page\.pth"):
        load_file(path)


def test_objects_that_need_code_are_refused_by_name(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save({"model": NotAllowed()}, path)
    with pytest.raises(UserError, match="could run code.*NotAllowed"):
        load_file(path)


def test_damage_is_found_in_the_legacy_format_too(tmp_path):
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


class Intruder:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["R-50.pkl", "R-50.PKL", "weights.pth", "weights.pyth", "weights"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_file_runs_code_whatever_its_name(tmp_path, name, protocol):
    content = {"model": {"w": Intruder(tmp_path / "created")}, "__author__": "a", "matching_heuristics": True}
    (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=rf"{name}.*could run code: (posix|nt)\.mkdir"):
        load_file(tmp_path / name)
    assert not (tmp_path / "created").exists()


ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by_columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.ones(2, np.float16),
    "big_endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
}


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_of_the_model_zoos_are_read(tmp_path, protocol):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "__author__": "me", "matching_heuristics": True}, protocol))
    checkpoint = load_file(path)
    assert (checkpoint["__author__"], checkpoint["matching_heuristics"]) == ("me", True)
    for name, array in ARRAYS.items():
        assert isinstance(checkpoint["model"][name], torch.Tensor)
        assert np.array_equal(checkpoint["model"][name].numpy(), array), name


def python_2_pickle(name: bytes, values: np.ndarray) -> bytes:
    """Return the pickle of an array as Python 2 with numpy 1 wrote it: text and raw bytes have one type."""
    raw = values.tobytes()
    return (
        b"\x80\x02}U" + bytes([len(name)]) + name + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K" + bytes([len(values)]) + b"\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )


def test_caffe2_pickles_of_python_2_are_read_as_latin1(tmp_path):
    values = np.array([1.5, -1e30, 7e-20], np.float32)
    (tmp_path / "R-101.pkl").write_bytes(python_2_pickle(b"conv1_w", values))
    checkpoint = load_file(tmp_path / "R-101.pkl")
    assert (checkpoint["__author__"], checkpoint["matching_heuristics"]) == ("Caffe2", True)
    assert checkpoint["model"]["conv1_w"].numpy().tolist() == values.tolist()


@pytest.mark.parametrize(
    "array",
    [np.array([1, "x"], dtype=object), np.zeros(2, "i4,f4"), np.array(["x"])],
    ids=["objects", "records", "text"],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": {"w": array}}))
    with pytest.raises(UserError, match="an array of"):
        load_file(tmp_path / "a.pkl")


FORMATS = {
    "zip": lambda content, file: torch.save(content, file),
    "legacy": lambda content, file: torch.save(content, file, _use_new_zipfile_serialization=False),
    "pickle": lambda content, file: pickle.dump({"model": {k: v.numpy() for k, v in content["model"].items()}}, file),
}


def mutated(data: bytes, numbers: random.Random) -> bytes:
    """Return the content with some bytes replaced, removed or inserted."""
    start, length = numbers.randrange(len(data)), numbers.choice([1, 4, 8, 100])
    inside = bytes(numbers.randrange(256) for _ in range(length)) if length < 100 else b""
    kept = length * numbers.randrange(2)
    return data[:start] + numbers.choice([inside, b"\xff" * length, b""]) + data[start + kept :]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_read_or_refused_and_a_zip_file_never_gives_other_weights(tmp_path, kind):
    weights = {f"layer{i}.weight": torch.randn(3, 2) for i in range(4)}
    whole, path, numbers = io.BytesIO(), tmp_path / "damaged.pth", random.Random(0)
    FORMATS[kind]({"model": weights, "iteration": 3}, whole)
    refused = 0
    for _ in range(200):
        path.write_bytes(mutated(whole.getvalue(), numbers))
        try:
            found = unwrap(load_file(path)).weights
        except UserError:
            refused += 1
            continue
        assert kind != "zip" or all(torch.equal(found[name], value) for name, value in weights.items())
    assert refused > 20


def test_a_flipped_bit_in_the_weights_is_found(tmp_path):
    torch.save({"w": torch.full((100,), 1.5)}, tmp_path / "flipped.pth")
    data = bytearray((tmp_path / "flipped.pth").read_bytes())
    data[data.index(torch.full((9,), 1.5).numpy().tobytes()) + 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(UserError, match="truncated or no checkpoint"):
        load_file(tmp_path / "flipped.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, so the download has failed"),
        (b"\x1f\x8b\x08\x00 packed", "is packed with gzip"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"w": {}}      ', "is truncated or no checkpoint"),
    ],
)
def test_the_error_names_the_kind_of_a_file_that_is_no_checkpoint(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_file(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["model_final.pth", "weights.safetensors", "weights.bin", "a.safetensors.index.json"])
def test_a_folder_is_refused_with_the_checkpoints_in_it(tmp_path, name):
    for file in (name, "metrics.json"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=rf"is a folder; give a checkpoint in it, such as {name}$"):
        load_file(tmp_path)


def test_an_archive_without_a_checkpoint_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(UserError, match="is an archive; no checkpoint is in it"):
        load_file(tmp_path / "a.pth")


def test_a_single_tensor_is_no_checkpoint(tmp_path):
    path = tmp_path / "tensor.pth"
    torch.save(torch.ones(1), path)
    with pytest.raises(UserError, match="holds a Tensor"):
        load_file(path)
