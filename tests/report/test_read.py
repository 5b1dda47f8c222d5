"""Results that do not belong to the true boxes are refused, with the first fault."""

import json

import pytest

from sparse_detr.errors import UserError
from sparse_detr.report.read import read_results
from tests.report.made_up import make_results, make_truth


def written(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_only_the_fields_of_boxes_are_read(tmp_path):
    path = written(tmp_path, [{**row, "segmentation": "x"} for row in make_results()])
    assert read_results(path, make_truth()) == make_results()


def named(rows, **change):
    """Return results as `sparse-detr predict` writes them: other ids, images and classes by name."""
    truth = make_truth()
    images = {image["id"]: (100 + i, image["file_name"]) for i, image in enumerate(truth["images"])}
    classes = {item["id"]: (1 + i, item["name"]) for i, item in enumerate(truth["categories"])}
    content = {
        "images": [{"id": number, "file_name": name} for number, name in images.values()],
        "categories": [{"id": number, "name": name} for number, name in classes.values()],
        "annotations": [
            {**row, "image_id": images[row["image_id"]][0], "category_id": classes[row["category_id"]][0]}
            for row in rows
        ],
    }
    return content | change


def test_what_predict_writes_is_found_by_the_names_of_images_and_classes(tmp_path):
    content = named(make_results())
    assert content["annotations"][0]["image_id"] >= 100
    assert read_results(written(tmp_path, content), make_truth()) == make_results()


def test_an_image_is_found_in_a_folder_of_the_true_boxes_file_if_its_name_is_clear(tmp_path):
    truth = make_truth()
    for image in truth["images"]:
        image["file_name"] = f"val/{image['file_name']}"
    assert read_results(written(tmp_path, named(make_results())), truth) == make_results()


def test_two_predicted_files_of_one_name_are_not_taken_for_one_image(tmp_path):
    content = named([row for row in make_results() if row["image_id"] == 1])
    content["images"] = [{"id": 100, "file_name": "train/1.png"}, {"id": 101, "file_name": "val/1.png"}]
    message = "has detections in train/1.png and val/1.png, and the true boxes' file has one 1.png; write file names"
    with pytest.raises(UserError, match=message):
        read_results(written(tmp_path, content), make_truth())
    truth = make_truth()
    truth["images"][0]["file_name"] = "train/1.png"  # the folder tells which one is meant
    assert len(read_results(written(tmp_path, content), truth)) == len(content["annotations"])


def test_a_list_of_classes_in_a_message_is_cut(tmp_path):
    truth = make_truth()
    truth["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, 301)]
    with pytest.raises(UserError, match="of 'cat', but the true boxes' file has class 1, .*, class 10 and 290 more$"):
        read_results(written(tmp_path, named(make_results())), truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": i, "file_name": "gone.png"} for i in range(100, 110)]}, "detections in gone.png, which is"),
        ({"categories": [{"id": i, "name": "horse"} for i in range(1, 9)]}, "detections of 'horse', but the true"),
        ({"images": []}, "is no file of `sparse-detr predict`"),
    ],
)
def test_names_that_the_true_boxes_file_lacks_are_told(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_results(written(tmp_path, named(make_results(), **change)), make_truth())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "a detection of image 9, which is not in the true boxes' file"),
        ({"image_id": "1"}, "a detection of image '1'"),
        ({"image_id": "1"}, "which is not in the true boxes' file; ids are whole numbers"),
        ({"image_id": 1.0}, "a detection of image 1.0, which is not in the true boxes' file; ids are whole numbers"),
        ({"image_id": True}, "a detection of image True"),
        ({"category_id": 0}, "category 0, but the true boxes' file has 1, 5, 7; results name category ids, not class"),
        ({"bbox": [0, 0, 5]}, "has a bbox that is no numbers: x, y, width, height"),
        ({"bbox": [0, 0, 5]}, r"entry 1 of .*; it is \[0, 0, 5\]"),
        (
            {"bbox": ["0", "0", "5", "5"]},
            r"entry 1 of .* is no numbers: .*; it is \['0', '0', '5', '5'\]",
        ),
        ({"bbox": [0, 0, True, 5]}, r"entry 1 of .* has a bbox that is no numbers: .*; it is \[0, 0, True, 5\]"),
        ({"bbox": [10**400, 0, 5, 5]}, r"entry 1 of .* has the bbox \[1000000.*\.\.\.; give x, y, width, height"),
        ({"score": "0.9"}, "entry 1 of .* has a score that is no number: '0.9'; give a score from 0 to 1"),
        ({"score": True}, "entry 1 of .* has a score that is no number: True"),
        ({"score": 10**400}, r"entry 1 of .* has the score 1000000.*\.\.\.; give a score from 0 to 1"),
        (
            {"bbox": [0, 0, -5, 5]},
            r"entry 1 of .* has the bbox \[0, 0, -5, 5\]; give x, y, width, height, sides of 0 or",
        ),
        ({"bbox": [0, 0, float("nan"), 5]}, "entry 1 of .* has the bbox"),
        ({"score": "high"}, "has a score that is no number"),
        ({"score": 87}, "entry 1 of .* has the score 87; give a score from 0 to 1"),
    ],
)
def test_a_wrong_detection_is_named(tmp_path, change, message):
    rows = make_results()
    rows[1] |= change
    with pytest.raises(UserError, match=message):
        read_results(written(tmp_path, rows), make_truth())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "cannot be read .it is no complete JSON.; give a COCO results file"),
        ("[{]", "cannot be read .it is no complete JSON.; give a COCO results file"),
        ({"annotations": []}, "holds a JSON dict; a COCO results file is a list of detections"),
        ([], "holds no detections, so there is nothing to report"),
        ([{"image_id": 1}], "entry 0 of .* is no detection; each needs image_id, category_id, bbox, score"),
        ([3], "entry 0 of .* is no detection"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_results(written(tmp_path, content), make_truth())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="gone.json cannot be read .No such file or directory."):
        read_results(tmp_path / "gone.json", make_truth())
