import errno
import json

import pytest
from PIL import Image

from sparse_detr.cli.main import main
from sparse_detr.model_zoo import get_config_file
from tests.data import copies
from tests.data.conftest import coco_content, write_coco


def run(folder, content, *options):
    return main(["check-data", "--json", str(write_coco(folder, content)), "--images", str(folder), *options])


def with_a_warning():
    content = coco_content()
    content["annotations"][0]["bbox"] = [1, 1, 0, 0]
    return content


def with_an_error():
    content = coco_content()
    content["annotations"][0]["category_id"] = 9
    return content


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (coco_content(), [], 0),
        (coco_content(), ["--strict"], 0),
        (with_a_warning(), [], 0),
        (with_a_warning(), ["--strict"], 1),
        (with_an_error(), [], 1),
        (coco_content(), ["--num-queries", "0", "--strict"], 1),
    ],
)
def test_the_exit_code_says_whether_training_would_stop(tmp_path, content, options, expected):
    assert run(tmp_path, content, *options) == expected


def test_the_report_is_printed_and_written(tmp_path, capsys):
    report = tmp_path / "report.json"

    run(tmp_path, with_a_warning(), "--report", str(report))

    assert "warning: 1 boxes have no area" in capsys.readouterr().out
    assert json.loads(report.read_text())["findings"][0]["code"] == "degenerate-box"


def test_a_report_that_cannot_be_written_is_one_error_and_the_old_one_stays(tmp_path, capsys, monkeypatch):
    report = tmp_path / "report.json"
    report.write_text("old")
    monkeypatch.setattr("os.replace", _no_space)

    assert run(tmp_path, with_a_warning(), "--report", str(report)) != 0

    assert f"cannot write the file {report}: the disk is full" in capsys.readouterr().err
    assert report.read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_corrupt_images_are_found_unless_decoding_is_off(tmp_path):
    write_coco(tmp_path, coco_content())
    (tmp_path / "1.png").write_bytes(b"")

    assert run(tmp_path, coco_content(), "--strict") == 1
    assert run(tmp_path, coco_content(), "--strict", "--no-image-decode") == 0
    assert run(tmp_path, coco_content(), "--max-bad-share", "0") == 1


def test_a_missing_file_is_an_error_without_a_traceback(tmp_path, capsys):
    code = main(["check-data", "--json", str(tmp_path / "no.json"), "--images", str(tmp_path)])

    assert code == 2
    assert "there is no annotation file" in capsys.readouterr().err


def test_the_queries_are_those_of_the_config_unless_given(tmp_path, capsys):
    content = coco_content()
    box = content["annotations"][0]
    content["annotations"] += [box | {"id": 10 + n, "bbox": [n % 30, n % 20, 5, 5 + n % 4]} for n in range(120)]
    config = ["--config-file", get_config_file("quick/sparse_detr_mnv2.py")]

    run(tmp_path, content, *config)
    assert "more boxes than the model's 100 queries" in capsys.readouterr().out
    run(tmp_path, content, *config, "--num-queries", "500")
    assert "queries" not in capsys.readouterr().out


# Folders, two parts, and the config at hand.

CONFIG = ["--config-file", get_config_file("quick/sparse_detr_mnv2.py")]


def examine(*options):
    return main(["check-data", *map(str, options)])


def large(count, start=0):
    """Return drawings whose objects are not small at the size of the quick configs."""
    return copies.drawings(count, start=start, size=(320, 240))


@pytest.mark.parametrize("form", list(copies.WRITERS))
def test_a_sound_folder_of_any_form_has_nothing_wrong(tmp_path, form, capsys):
    root = copies.write(form, tmp_path / "data", {"train": large(12), "val": large(8, start=30)})
    assert examine("--train", root, *CONFIG, "--strict") == 0
    text = capsys.readouterr().out
    assert f"is read as {form}, part 'train': 12 images for training" in text
    assert text.count("nothing is wrong") == 2
    assert "tokens of an object on the level of stride 8 (median)" in text
    assert "augmentation preset: photos" in text
    assert "an image): dataloader.train.mapper.augmentations.preset=photos" in text


def test_standard_output_holds_json_alone_on_request(tmp_path, capsys):
    root = copies.write("YOLO", tmp_path / "data", {"train": large(12)})
    assert examine("--train", root, "--report", "-", *CONFIG) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["facts"]["images"] == 10
    assert content["validation"]["facts"]["images"] == 2
    assert "2 of the 12 images are taken for it" in content["read"][1]
    assert content["preset"]["override"] == "dataloader.train.mapper.augmentations.preset=photos"


def test_a_leak_between_two_files_is_found_and_strict_says_so(tmp_path, capsys):
    train, val = write_coco(tmp_path, coco_content(), "train.json"), write_coco(tmp_path, coco_content(), "val.json")
    named = ["--train-json", train, "--train-images", tmp_path, "--val-json", val, "--val-images", tmp_path]
    assert examine(*named) == 0
    assert "3 images for validation have the pixels of a training image" in capsys.readouterr().out
    assert examine(*named, "--strict") == 1


def test_an_error_in_the_validation_data_stops_too(tmp_path):
    train = write_coco(tmp_path, coco_content(), "train.json")
    val = write_coco(tmp_path, with_an_error(), "val.json")
    named = ["--json", train, "--images", tmp_path, "--val-json", val, "--val-images", tmp_path]
    assert examine(*named) == 1


def test_labels_that_cannot_be_read_stop_the_training(tmp_path, capsys):
    root = copies.write("YOLO", tmp_path / "data", {"train": large(4)})
    (root / "labels" / "train" / "image_00.txt").write_text("0 1 2\n")
    assert examine("--train", root, "--val-share", 0) == 1
    assert "error: 1 lines of labels cannot be read" in capsys.readouterr().out


def test_changes_can_be_pasted_behind_the_command(tmp_path, capsys):
    content = coco_content()
    box = content["annotations"][0]
    content["annotations"] += [box | {"id": 10 + n, "bbox": [n % 30, n % 20, 5, 5 + n % 4]} for n in range(120)]
    named = ["--json", write_coco(tmp_path, content), "--images", tmp_path, *CONFIG]
    examine(*named)
    text = capsys.readouterr().out
    assert "model.queries.num_queries=200   # an image has 121 boxes" in text
    (pasted,) = [line.removeprefix("to paste: ") for line in text.splitlines() if line.startswith("to paste: ")]
    examine(*named, "--opts", *pasted.split())
    text = capsys.readouterr().out
    assert "queries; it cannot detect them all" not in text
    assert "model.queries" not in text


def test_the_contact_sheet_shows_the_training_data_after_the_augmentation(tmp_path):
    root = copies.write("CSV", tmp_path / "data", {"train": large(6)})
    sheet, plain = tmp_path / "sheet.png", tmp_path / "plain.png"
    assert examine("--train", root, "--contact-sheet", sheet, "--samples", 3, *CONFIG) == 0
    assert examine("--train", root, "--contact-sheet", plain, "--samples", 3) == 0
    assert Image.open(sheet).size == Image.open(plain).size
    assert sheet.read_bytes() != plain.read_bytes()
    assert examine("--train", root, "--contact-sheet", sheet, "--samples", 0) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no data are named; give --train PATH, or --json FILE and --images DIR"),
        (["--val", "d"], "--val needs --train"),
        (["--train", "d", "--json", "a.json"], "--train does not go with --json; give one or the other"),
        (["--train", "d", "--validation"], "--train does not go with --validation"),
        (["--json", "a.json", "--images", "d", "--val-json", "b.json"], "--val-json and --val-images go together"),
        (
            ["--json", "a", "--images", "d", "--val-json", "b", "--val-images", "d", "--validation"],
            "--validation says that --json is for evaluation",
        ),
        (["--train", "nowhere"], "there is no folder or file nowhere"),
    ],
)
def test_data_that_are_named_wrongly_are_one_line_and_exit_with_2(options, message, capsys):
    assert examine(*options) == 2
    assert message in capsys.readouterr().err
