import errno
import json

import pytest

from sparse_detr.cli.main import main
from sparse_detr.model_zoo import get_config_file
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
