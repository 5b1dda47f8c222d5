import json

import pytest

from sparse_detr.cli.main import main
from sparse_detr.data.check import check_data
from tests.data import copies


def run(source, output, *options):
    return main(["convert-data", "--input", str(source), "--output", str(output), *options])


@pytest.mark.parametrize("form", list(copies.WRITERS))
def test_each_form_becomes_a_coco_file_that_check_data_accepts(tmp_path, form, capsys):
    made = copies.drawings(7)
    root = copies.write(form, tmp_path / "data", {None: made})

    assert run(root, tmp_path / "out.json") == 0

    printed = capsys.readouterr()
    assert f"{tmp_path / 'out.json'}: 7 images, 12 boxes, 3 classes; its file names start from {root}" in printed.out
    assert f"is {form}" in printed.err
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["annotations"] == copies.coco_content(made)["annotations"]
    assert check_data(tmp_path / "out.json", content["info"]["images"]).findings == []


def test_every_part_gets_its_file_or_one_is_chosen(tmp_path, capsys):
    root = copies.write("CSV", tmp_path / "data", {"train": copies.drawings(4), "val": copies.drawings(2, start=9)})

    assert run(root, tmp_path / "out.json") == 0
    assert len(json.loads((tmp_path / "out_train.json").read_text())["images"]) == 4
    assert len(json.loads((tmp_path / "out_val.json").read_text())["images"]) == 2
    assert run(root, tmp_path / "one.json", "--part", "val") == 0
    assert (tmp_path / "one.json").read_text() == (tmp_path / "out_val.json").read_text()
    assert run(root, tmp_path / "one.json", "--part", "test") == 2
    assert "has no part test; it has train, val" in capsys.readouterr().err


def test_a_split_is_by_share_and_seed(tmp_path, capsys):
    root = copies.write("Pascal VOC", tmp_path / "data", {None: copies.drawings(10)})

    assert run(root, tmp_path / "out.json", "--split", "0.3", "--split-seed", "4") == 0
    sizes = [len(json.loads((tmp_path / f"out_{part}.json").read_text())["images"]) for part in ("train", "val")]
    assert sizes == [7, 3]
    assert run(root, tmp_path / "out.json", "--split", "0.3", "--part", "val") == 2
    assert run(root, tmp_path / "out.json", "--split", "1.5") == 2
    assert run(root, tmp_path / "out.json", "--split", "0") == 2
    divided = copies.write(
        "YOLO", tmp_path / "other", {"train": copies.drawings(4), "val": copies.drawings(2, start=9)}
    )
    capsys.readouterr()
    assert run(divided, tmp_path / "out.json", "--split", "0.3") == 2
    assert "has a part for validation; leave out --split 0.3" in capsys.readouterr().err


def test_entries_that_cannot_be_read_are_listed_and_nothing_is_written(tmp_path, capsys):
    root = copies.write("YOLO", tmp_path / "data", {"train": copies.drawings(4)})
    (root / "labels" / "train" / "image_00.txt").write_text("0 1 2\n7 0.5 0.5 0.1 0.1\n")

    assert run(root, tmp_path / "out.json") == 1

    error = capsys.readouterr().err
    assert "error: 1 lines of labels cannot be read" in error
    assert "error: 1 labels name a class beyond the 3 classes" in error
    assert not (tmp_path / "out.json").exists()


def test_files_of_the_data_are_not_replaced(tmp_path, capsys):
    root = copies.write("COCO", tmp_path / "data", {"train": copies.drawings(4), "val": copies.drawings(2, start=9)})
    path, other = (root / "annotations" / f"instances_{part}.json" for part in ("train", "val"))
    before = [path.read_bytes(), other.read_bytes()]
    link = tmp_path / "link.json"
    link.symlink_to(path)

    for source, output, *options in (
        (path, path),
        (path, root / "images" / ".." / "annotations" / "instances_train.json"),
        (path, link),
        (link, path),
        (root, path, "--part", "val"),
        (root, root / "annotations" / "instances.json"),
    ):
        assert run(source, output, *options) == 2
        assert "which is read; choose another --output" in capsys.readouterr().err
    assert [path.read_bytes(), other.read_bytes()] == before
    assert run(path, other.with_name("new.json")) == 0
