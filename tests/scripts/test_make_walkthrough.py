"""The page's commands are run in turn; the data are sound; what a command prints goes into its block."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from sparse_detr.data.formats.find import find_data_set, training_part
from sparse_detr.errors import UserError
from tests.browser import CHROMIUM


@pytest.fixture
def script(load_script):
    return load_script("make_walkthrough")


@pytest.fixture
def sample(script, tmp_path, monkeypatch):
    """A training tile with one box, and a held-out scene of 2 x 2 tiles."""
    folder = tmp_path / "sample"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    Image.new("RGB", (40, 30), "green").save(folder / "train" / "a.png")
    scene = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    for x in (0, 350):
        for y in (0, 250):
            Image.fromarray(scene[y : y + 250, x : x + 350]).save(folder / "val" / f"s_x{x:04}_y{y:04}.png")
    content = {
        "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 7, "bbox": [2, 3, 10, 20]}],
        "categories": [{"id": 7, "name": "oak & ash"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    monkeypatch.setattr(script, "SAMPLE", folder)
    return scene


def test_the_data_are_pictures_with_boxes_photos_and_a_video(script, sample, tmp_path):
    said = script.make_data(tmp_path / "walk")
    assert said.startswith("1 pictures with 1 boxes, 4 photos and a video are in ")
    found = find_data_set(tmp_path / "walk" / "trees")
    part = found.parts[training_part(found)]()
    assert part.class_names == ["oak & ash"]
    assert [row["bbox"] for row in part.content["annotations"]] == [[2, 3, 10, 20]]
    assert len(list((tmp_path / "walk" / "photos").iterdir())) == 4
    video = cv2.VideoCapture(str(tmp_path / "walk" / "flight.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == script.FRAMES


def test_tiles_are_put_together_as_they_were_cut(script, sample):
    np.testing.assert_array_equal(script.scene_of(sorted((script.SAMPLE / "val").iterdir())), sample)


def test_missing_sample_data_say_how_to_make_them(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SAMPLE", tmp_path / "nothing")
    with pytest.raises(UserError, match="has no sample data; make it with `make sample-data`"):
        script.make_data(tmp_path / "walk")


@pytest.fixture
def page(script, tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    blocks = [
        f"```bash\n{command}\n```\n<!-- table walk {number} -->\n<!-- end walk {number} -->\n"
        for number, command in enumerate(["seq 6", "echo a; echo x >> count"], start=1)
    ]
    path.write_text("\n".join(blocks))
    monkeypatch.setattr(script, "PAGE", path)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "OUTPUT", tmp_path / "walk")
    monkeypatch.setattr(script, "draw", lambda output, folder: None)
    return path


def call(script, monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["make_walkthrough.py", *words])
    return script.main()


def test_commands_run_in_turn_and_their_last_lines_go_into_the_page(script, page, tmp_path, monkeypatch):
    assert call(script, monkeypatch) == 0
    blocks = re.findall(r"<!-- table walk \d -->\n```\n(.*?)\n```\n<!-- end", page.read_text(), re.DOTALL)
    assert blocks == ["3\n4\n5\n6", "a"]
    call(script, monkeypatch, "--go-on")
    assert (tmp_path / "count").read_text() == "x\n"
    call(script, monkeypatch)
    assert (tmp_path / "count").read_text() == "x\nx\n"


def test_a_command_that_fails_ends_it(script, page, tmp_path, monkeypatch):
    page.write_text(page.read_text().replace("seq 6", "exit 3"))
    with pytest.raises(UserError, match="a command of page.md ended with status 3: exit 3"):
        call(script, monkeypatch)


def test_a_folder_that_the_commands_do_not_know_is_refused(script, page, monkeypatch):
    with pytest.raises(UserError, match="--output goes with --only-data: the commands of page.md write into"):
        call(script, monkeypatch, "--output", "elsewhere")


def test_every_command_of_the_page_has_a_block_for_its_print(script):
    text = script.PAGE.read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"<!-- table walk (\d+) -->", text)]
    assert numbers == list(range(1, len(script.commands_of(text)) + 1))
    assert set(script.LAST_LINES) <= set(numbers)


def test_every_picture_of_the_page_is_there(script):
    text = script.PAGE.read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((walkthrough/[^)]+)\)", text)
    assert len(pictures) == 5
    assert [name for name in pictures if not (script.PAGE.parent / name).is_file()] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_page_is_photographed(script, tmp_path):
    (tmp_path / "page.html").write_text("<body style='background: red'>")
    script.photograph(tmp_path / "page.html", tmp_path / "shot.png")
    assert Image.open(tmp_path / "shot.png").convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_without_a_browser_the_remedy_is_told(script, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs Chromium; install it, and run again with --go-on"):
        script.photograph(tmp_path / "page.html", tmp_path / "shot.png")
