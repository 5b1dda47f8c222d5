import errno
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from sparse_detr.data.check import check_data
from sparse_detr.data.register import register_own_data
from sparse_detr.errors import UserError
from tests.data.conftest import NEVER_READ, coco_content, write_coco


def register(folder, train, val=None, **options):
    val_options = {}
    if val is not None:
        val_options = {"val_json": write_coco(folder, val, "val.json"), "val_images": folder}
    return register_own_data(
        train_json=write_coco(folder, train, "train.json"), train_images=folder, **val_options, **options
    )


def ap_of_perfect_detections(own, folder):
    """Return the AP of one detection an image, on the first box of each image of `coco_content`."""
    evaluator = COCOEvaluator(own.val_name, tasks=["bbox"], distributed=False, output_dir=str(folder / "out"))
    evaluator.reset()
    for record in DatasetCatalog.get(own.val_name):
        instances = Instances((30, 40))
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 3.0, 12.0, 11.0]]))
        instances.scores = torch.ones(1)
        instances.pred_classes = torch.tensor([record["annotations"][0]["category_id"]])
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]["AP"]


def test_classes_come_from_the_training_file_in_the_order_of_their_ids(tmp_path):
    content = coco_content(num_categories=2)
    content["categories"] = [{"id": 90, "name": "ninety"}, {"id": 7, "name": "seven"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = 90

    own = register(tmp_path, content)

    assert (own.num_classes, own.class_names, own.val_name) == (2, ["seven", "ninety"], None)
    records = DatasetCatalog.get(own.train_name)
    assert [record["annotations"][0]["category_id"] for record in records] == [1, 1, 1]
    assert MetadataCatalog.get(own.train_name).thing_dataset_id_to_contiguous_id == {7: 0, 90: 1}


def test_detectron2_loads_what_was_registered(tmp_path):
    own = register(tmp_path, coco_content(), coco_content())

    records = get_detection_dataset_dicts([own.train_name, own.val_name], filter_empty=False)

    assert len(records) == 6
    assert records[0]["file_name"] == str(tmp_path / "1.png")
    assert MetadataCatalog.get(own.val_name).json_file == str(tmp_path / "val.json")
    assert MetadataCatalog.get(own.val_name).evaluator_type == "coco"


def test_registering_again_gives_the_same_names_until_the_file_changes(tmp_path):
    first = register(tmp_path, coco_content())
    again = register(tmp_path, coco_content())
    changed = register(tmp_path, coco_content(num_categories=3))

    assert first == again
    assert changed.train_name != first.train_name
    assert changed.num_classes == 3


def test_unusable_boxes_are_left_out_and_counted(tmp_path, caplog):
    content = coco_content(num_categories=1)
    content["annotations"][0]["bbox"] = [5, 5, 0, 3]
    content["annotations"][1]["bbox"] = [500, 5, 3, 3]

    with caplog.at_level(logging.INFO):
        records = DatasetCatalog.get(register(tmp_path, content).train_name)

    assert [len(record["annotations"]) for record in records] == [0, 0, 1]
    assert "1 boxes have no area" in caplog.text
    assert "1 boxes lie outside" in caplog.text
    assert "dropped 2 boxes" in caplog.text


def test_all_errors_are_reported_at_once(tmp_path):
    content = coco_content()
    content["annotations"][0]["category_id"] = 5
    content["annotations"][1]["bbox"] = [1]

    with pytest.raises(UserError) as error:
        register(tmp_path, content)

    assert "train.json cannot be used" in str(error.value)
    assert "annotation 1 of image 1: 5" in str(error.value)
    assert "'bbox' of four numbers" in str(error.value)


def test_other_categories_in_the_validation_file_are_refused_by_name(tmp_path):
    val = coco_content(num_categories=3)
    val["categories"][1]["name"] = "dog"

    with pytest.raises(UserError) as error:
        register(tmp_path, coco_content(num_categories=2), val)

    assert "category 2 is 'class 2' in" in str(error.value)
    assert "'dog' in" in str(error.value)
    assert "category 3 is missing in" in str(error.value)
    assert "category 1" not in str(error.value)


def test_a_class_without_boxes_is_kept_and_reported(tmp_path, caplog):
    content = coco_content()
    content["categories"].append({"id": 3, "name": "unicorn"})

    assert register(tmp_path, content).num_classes == 3
    assert "unicorn" in caplog.text


def test_a_validation_file_without_any_annotation_is_allowed_with_a_warning(tmp_path, caplog):
    empty = coco_content() | {"annotations": []}

    own = register(tmp_path, coco_content(), empty)

    assert [record["annotations"] for record in DatasetCatalog.get(own.val_name)] == [[], [], []]
    assert "every image is a negative" in caplog.text
    assert "no box to evaluate with, so the AP is not defined" in caplog.text


def test_a_wrong_image_folder_is_refused(tmp_path):
    other = tmp_path / "other"
    other.mkdir()

    with pytest.raises(UserError, match=r"3 of the 3 images .* are not in .*other: 1.png"):
        register_own_data(train_json=write_coco(tmp_path, coco_content()), train_images=other)


def test_a_few_missing_images_are_reported_and_many_are_refused(tmp_path, caplog):
    write_coco(tmp_path, coco_content(num_categories=1))
    path = tmp_path / "annotations.json"
    (tmp_path / "1.png").unlink()
    register_own_data(train_json=path, train_images=tmp_path)
    assert "1 of the 3 images" in caplog.text

    (tmp_path / "2.png").unlink()
    with pytest.raises(UserError, match="2 of the 3 images"):
        register_own_data(train_json=path, train_images=tmp_path)
    register_own_data(train_json=path, train_images=tmp_path, max_bad_share=0.7)


def test_a_validation_file_without_a_folder_is_refused(tmp_path):
    path = write_coco(tmp_path, coco_content())

    with pytest.raises(UserError, match="needs an annotation file and an image folder"):
        register_own_data(train_json=path, train_images=tmp_path, val_json=path)


def without_area(annotations):
    for annotation in annotations:
        del annotation["area"], annotation["iscrowd"]


def numbered_from_zero(annotations):
    for number, annotation in enumerate(annotations):
        annotation["id"] = number


def with_a_degenerate_box(annotations):
    annotations.append(annotations[0] | {"id": 50, "bbox": [1, 1, 0, 0]})


def unchanged(annotations):
    pass


def change_all(**values):
    return lambda content: [item.update(values) for item in content["annotations"]]


LEAVES_NO_BOX = {
    "3 crowds (iscrowd 1)": [change_all(iscrowd=flag) for flag in (1, True, "1", "true", "Yes", 1.0, "1.0")],
    "3 without area": [change_all(bbox=box) for box in ([1, 1, 0, 0], [1, 1, -5, 5], [float("nan"), 1, 2, 2])],
    "3 outside their image": [change_all(bbox=[400, 1, 5, 5])],
    "3 unusable entries or of unknown images": [change_all(image_id=99)],
    "list of annotations is empty": [lambda content: content["annotations"].clear()],
}


@pytest.mark.parametrize(
    ("cause", "damage"), [(cause, damage) for cause in LEAVES_NO_BOX for damage in LEAVES_NO_BOX[cause]]
)
def test_a_training_file_that_leaves_no_box_is_refused_with_the_cause(tmp_path, cause, damage):
    content = coco_content()
    damage(content)

    with pytest.raises(UserError, match="no box to train on") as error:
        register(tmp_path, content)
    report = check_data(tmp_path / "train.json", tmp_path)

    assert cause in str(error.value)
    assert cause in next(finding.message for finding in report.findings if finding.code == "no-boxes")
    assert report.stops_training
    assert not check_data(tmp_path / "train.json", tmp_path, for_validation=True).stops_training


def test_a_class_whose_boxes_are_all_left_out_is_refused_with_the_cause(tmp_path):
    content = coco_content()
    content["annotations"][1]["iscrowd"] = "true"

    with pytest.raises(UserError, match=r"classes have no box left to train on.*class 2: 1 crowds"):
        register(tmp_path, content)
    assert check_data(tmp_path / "train.json", tmp_path).stops_training


@pytest.mark.parametrize("flag", [0, "0", "false", "No", 0.0, False, None, "0.0", " 0 "])
def test_a_crowd_flag_for_no_is_read_as_no_everywhere(tmp_path, flag):
    content = coco_content()
    change_all(iscrowd=flag)(content)

    own = register(tmp_path, content, content)

    assert [record["annotations"][0]["iscrowd"] for record in DatasetCatalog.get(own.train_name)] == [0, 0, 0]
    assert check_data(tmp_path / "train.json", tmp_path).facts["boxes to train on"] == 3
    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


@pytest.mark.parametrize("flag", [2, -1, [1], {}, "2", "maybe", "", 0.5, float("nan")])
def test_a_crowd_flag_for_neither_yes_nor_no_is_refused_with_its_value(tmp_path, flag):
    content = coco_content()
    change_all(iscrowd=flag)(content)

    with pytest.raises(UserError, match="'iscrowd' that is neither 0") as error:
        register(tmp_path, content)

    assert json.dumps(flag) in str(error.value)
    assert check_data(tmp_path / "train.json", tmp_path).stops_training


def test_a_crowd_with_any_form_of_flag_does_not_count_as_missed(tmp_path):
    content = coco_content()
    content["annotations"].append(content["annotations"][0] | {"id": 9, "bbox": [0, 0, 30, 30], "iscrowd": "yes"})

    own = register(tmp_path, content, content)

    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


@pytest.mark.parametrize(("key", "value"), NEVER_READ)
def test_a_box_counts_alike_everywhere_for_any_other_fields(tmp_path, key, value):
    content = coco_content()
    change_all(**{key: value})(content)

    own = register(tmp_path, content, content)

    assert sum(len(record["annotations"]) for record in DatasetCatalog.get(own.train_name)) == 3
    assert check_data(tmp_path / "train.json", tmp_path).facts["boxes to train on"] == 3
    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


def test_a_validation_file_of_crowds_only_gives_a_warning_and_no_ap(tmp_path, caplog):
    val = coco_content()
    change_all(iscrowd=1)(val)

    own = register(tmp_path, coco_content(), val)

    assert "no box to evaluate with, so the AP is not defined: 3 crowds (iscrowd 1)" in caplog.text
    assert math.isnan(ap_of_perfect_detections(own, tmp_path))


def test_the_area_of_a_mask_stays_when_another_box_of_the_file_is_faulty(tmp_path):
    content = coco_content()
    change_all(area=33.0)(content)
    content["annotations"].append(content["annotations"][0] | {"id": 9, "bbox": [0, 0, 0, 0]})

    own = register(tmp_path, content, content)

    truth = json.loads(Path(MetadataCatalog.get(own.val_name).json_file).read_text())
    assert [box["area"] for box in truth["annotations"]] == [33.0, 33.0, 33.0]


@pytest.mark.parametrize("damage", [unchanged, without_area, numbered_from_zero, with_a_degenerate_box])
def test_perfect_detections_have_an_ap_of_100_whatever_the_file_lacks(tmp_path, damage):
    content = coco_content()
    damage(content["annotations"])
    own = register(tmp_path, content, content)

    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


def test_perfect_detections_of_boxes_from_masks_have_an_ap_of_100(tmp_path):
    content = coco_content()
    for item in content["annotations"]:
        x, y, width, height = item.pop("bbox")
        item["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    path = write_coco(tmp_path, content)
    files = {
        f"{split}_{kind}": file for split in ("train", "val") for kind, file in (("json", path), ("images", tmp_path))
    }

    own = register_own_data(**files, boxes_from_masks=True)

    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


def half_of_a_character(text):
    """Put half a surrogate pair into an unused field: Python reads it, other readers of UTF-8 do not."""
    return text.replace("{", '{"note": "\ud800", ', 1).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("encode", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32-le", half_of_a_character])
def test_files_of_other_encodings_are_evaluated_on(tmp_path, encode):
    path = write_coco(tmp_path, coco_content())
    text = path.read_text()
    path.write_bytes(text.encode(encode) if isinstance(encode, str) else encode(text))
    files = {
        f"{split}_{kind}": file for split in ("train", "val") for kind, file in (("json", path), ("images", tmp_path))
    }

    own = register_own_data(**files)

    assert ap_of_perfect_detections(own, tmp_path) == pytest.approx(100)


def test_file_names_of_windows_are_refused_with_their_remedy(tmp_path):
    content = coco_content()
    for image in content["images"]:
        image["file_name"] = f"images\\{image['file_name']}"
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"write / for the \\ in file_name, or use --train"):
        register_own_data(train_json=write_coco(tmp_path, content), train_images=tmp_path / "other")


def test_without_a_temporary_folder_the_remedy_is_named(tmp_path, monkeypatch):
    content = coco_content()
    without_area(content["annotations"])
    monkeypatch.setattr("tempfile.TemporaryDirectory", _no_folder)

    with pytest.raises(UserError, match="No usable temporary directory.*set TMPDIR to a folder"):
        register(tmp_path, content, content)


def _no_folder(**_):
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


def test_the_registered_files_are_not_changed(tmp_path):
    path = write_coco(tmp_path, coco_content())
    before = path.read_text()

    own = register_own_data(train_json=path, train_images=tmp_path)
    DatasetCatalog.get(own.train_name)

    assert json.loads(path.read_text()) == json.loads(before)
