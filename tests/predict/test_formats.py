"""What is written, by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sparse_detr.errors import UserError
from sparse_detr.predict.formats import write_coco, write_parquet, write_pictures, write_yolo
from sparse_detr.predict.job import Found, Job

FOUND = [
    Found(0, "sub/a.jpg", 100, 50, [[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 100.0, 50.0]], [0.9, 0.5], [1, 0]),
    Found(1, "torn.jpg", problem="torn.jpg: cannot be decoded"),
    Found(2, "empty.jpg", 20, 20),
]


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path / "out", [found.name for found in FOUND], {}, ["cell", "plate"], shard_size=2)
    job.write(0, FOUND[:2])
    job.write(1, FOUND[2:])
    return job


def test_coco_has_the_images_that_could_be_used_and_boxes_with_scores(job, capsys):
    path = job.folder / "detections.json"
    write_coco(job, path, {})
    content = json.loads(path.read_text())
    assert content["categories"] == [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}]
    assert content["images"] == [
        {"id": 1, "file_name": "sub/a.jpg", "width": 100, "height": 50},
        {"id": 3, "file_name": "empty.jpg", "width": 20, "height": 20},
    ]
    first = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10.0, 5.0, 20.0, 20.0], "area": 400.0}
    assert content["annotations"][0] == {**first, "iscrowd": 0, "score": 0.9}
    assert len(content["annotations"]) == 2
    coco = COCO(str(path))
    assert coco.loadRes(content["annotations"]).getAnnIds(imgIds=[1]) == [1, 2]


def test_coco_of_nothing_is_whole(tmp_path):
    job = Job(tmp_path, ["torn.jpg"], {}, [], shard_size=2)
    job.write(0, [Found(0, "torn.jpg", problem="torn")])
    write_coco(job, tmp_path / "detections.json", {})
    content = json.loads((tmp_path / "detections.json").read_text())
    assert (content["images"], content["annotations"]) == ([], [])


def test_the_boxes_of_a_track_have_its_number(job):
    write_coco(job, job.folder / "detections.json", {0: [7, 3]})
    content = json.loads((job.folder / "detections.json").read_text())
    assert [row["track_id"] for row in content["annotations"]] == [7, 3]


def test_yolo_has_a_file_for_every_picture_with_centres_and_sizes(job):
    write_yolo(job.folder / "labels", job.stems, FOUND)
    written = {path.relative_to(job.folder / "labels").as_posix() for path in (job.folder / "labels").rglob("*.txt")}
    assert written == {"sub/a.txt", "empty.txt"}
    assert (job.folder / "labels/sub/a.txt").read_text().splitlines() == [
        "1 0.200000 0.300000 0.200000 0.400000 0.9000",
        "0 0.500000 0.500000 1.000000 1.000000 0.5000",
    ]
    assert (job.folder / "labels/empty.txt").read_text() == ""


def test_parquet_has_a_row_for_every_detection(job):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(job.folder / "p" / "0.parquet", FOUND, job.class_names)
    write_parquet(job.folder / "p" / "1.parquet", FOUND[1:], job.class_names)
    table = parquet.read_table(job.folder / "p").to_pydict()
    assert table["file_name"] == ["sub/a.jpg"] * 2
    assert table["class_name"] == ["plate", "cell"]
    assert table["x1"] == [30.0, 100.0]
    assert table["score"] == pytest.approx([0.9, 0.5])


def test_pictures_are_large_and_show_the_boxes(job):
    image = np.full((50, 100, 3), 128, np.uint8)
    pictures = [(FOUND[0], image), (FOUND[1], None)]
    write_pictures(job.folder / "pictures", job.stems, lambda picture: picture, pictures, job.class_names, "")
    drawn = np.asarray(Image.open(job.folder / "pictures" / "sub" / "a.jpg")).astype(int)
    assert drawn.shape[1] == 1280
    assert abs(drawn[200, 128] - 128).max() > 40  # the left edge of the first box
    assert abs(drawn[450, 900] - 128).max() < 10


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="leads out of"):
        write_yolo(tmp_path / "labels", ["../../evil"], [Found(0, "../../evil.jpg", 10, 10)])
    assert not (tmp_path.parent / "evil.txt").exists()
