import json

import pytest

from sparse_detr.data.annotations import check_annotations, check_classes_have_boxes, missing_files, read_coco_file
from sparse_detr.errors import UserError
from tests.data.conftest import NEVER_READ, coco_content, write_coco


def check(tmp_path, content):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return {finding.code: finding for finding in check_annotations(read_coco_file(path))}


def test_a_sound_file_has_no_findings(tmp_path):
    assert check(tmp_path, coco_content()) == {}


def change(*path, value):
    def apply(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return apply


def repeat(key):
    return lambda content: content[key].append(dict(content[key][0]))


ERRORS = {
    "image-fields": [
        change("images", 0, "id", value="1"),
        change("images", 0, "width", value=0),
        change("images", 0, "height", value=None),
        change("images", 0, "file_name", value=7),
        change("images", 0, value="1.png"),
    ],
    "category-fields": [
        change("categories", 0, "id", value="1"),
        change("categories", 0, "name", value=None),
        change("categories", 0, value=[]),
    ],
    "annotation-fields": [
        change("annotations", 0, "id", value="1"),
        change("annotations", 0, "image_id", value=1.5),
        change("annotations", 0, "category_id", value=None),
        change("annotations", 0, "bbox", value=[]),
        change("annotations", 0, "bbox", value=[1, 2, 3]),
        change("annotations", 0, "bbox", value=["1", 2, 3, 4]),
        change("annotations", 0, value=None),
    ],
    "no-images": [change("images", value=[])],
    "no-categories": [change("categories", value=[])],
    "duplicate-image-id": [repeat("images")],
    "duplicate-category-id": [repeat("categories")],
    "duplicate-annotation-id": [repeat("annotations")],
    "unknown-category": [change("annotations", 0, "category_id", value=77)],
    "ignore-flag": [change("annotations", 0, "ignore", value=1)],
}
WARNINGS = {
    "duplicate-file-name": [change("images", 0, "file_name", value="2.png")],
    "duplicate-category-name": [change("categories", 0, "name", value="class 2")],
    "absent-category": [lambda content: content["categories"].append({"id": 9, "name": "unicorn"})],
    "no-annotations": [change("annotations", value=[])],
    "unknown-image": [change("annotations", 0, "image_id", value=77)],
    "degenerate-box": [
        change("annotations", 0, "bbox", value=[1, 1, 0, 5]),
        change("annotations", 0, "bbox", value=[1, 1, 5, -5]),
        change("annotations", 0, "bbox", value=[float("nan"), 1, 5, 5]),
        change("annotations", 0, "bbox", value=[1, 1, float("inf"), 5]),
    ],
    "outside-box": [change("annotations", 0, "bbox", value=[100, 1, 5, 5])],
    "clipped-box": [change("annotations", 0, "bbox", value=[35, 1, 20, 5])],
    "duplicate-box": [lambda content: content["annotations"].append(content["annotations"][0] | {"id": 99})],
}


@pytest.mark.parametrize(("code", "damage"), [(code, damage) for code, all_ in ERRORS.items() for damage in all_])
def test_a_fault_that_stops_training_is_an_error(tmp_path, code, damage):
    content = coco_content()
    damage(content)

    findings = check(tmp_path, content)

    assert findings[code].is_error
    assert findings[code].count == 1


@pytest.mark.parametrize(("code", "damage"), [(code, damage) for code, all_ in WARNINGS.items() for damage in all_])
def test_a_fault_that_training_can_handle_is_a_warning(tmp_path, code, damage):
    content = coco_content()
    damage(content)

    findings = check(tmp_path, content)

    assert findings[code].count == 1
    assert not any(finding.is_error for finding in findings.values())


def test_a_finding_names_the_count_and_some_examples(tmp_path):
    content = coco_content(num_images=7)
    for annotation in content["annotations"]:
        annotation["bbox"] = [1, 1, 0, 0]

    assert str(check(tmp_path, content)["degenerate-box"]) == (
        "7 boxes have no area or are not finite; they are dropped (annotation 1 of image 1, annotation 2 of image 2, "
        "annotation 3 of image 3, annotation 4 of image 4, annotation 5 of image 5, ...)"
    )


@pytest.mark.parametrize(("key", "value"), NEVER_READ)
def test_a_field_that_a_box_detector_never_reads_is_no_finding(tmp_path, key, value):
    content = coco_content()
    content["annotations"][0][key] = value

    assert check(tmp_path, content) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not complete JSON"),
        ('{"images": [{"id": 1', "truncated"),
        ("[]", "JSON list"),
        ("[" * 100_000, "not complete JSON"),
        ('{"images": [], "categories": []}', "no list 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": null}', "no list 'images' and no list 'categories'"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "annotations.json"
    path.write_text(text)

    with pytest.raises(UserError, match=message) as error:
        read_coco_file(path)

    assert str(path) in str(error.value)


def test_a_binary_file_is_refused(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_bytes(b"\xff\xfe\x00\x80")

    with pytest.raises(UserError, match="not complete JSON"):
        read_coco_file(path)


def test_an_absent_file_and_an_absent_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="no annotation file .*nothing.json"):
        read_coco_file(tmp_path / "nothing.json")
    coco = read_coco_file(write_coco(tmp_path, coco_content()))
    with pytest.raises(UserError, match="no image folder .*nowhere"):
        missing_files(coco, tmp_path / "nowhere")


def test_missing_images_are_listed(tmp_path):
    coco = read_coco_file(write_coco(tmp_path, coco_content()))
    (tmp_path / "2.png").unlink()

    assert missing_files(coco, tmp_path) == ["2.png"]


class OnlyRead(list):
    """A list that is not searched: that would take a time with the number of images times that of boxes."""

    def __contains__(self, item):
        raise AssertionError("searched")


def test_missing_images_are_looked_up_in_a_set(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_content()))
    coco = read_coco_file(path)
    names = [image["file_name"] for image in coco.images]
    assert not coco.is_target(OnlyRead(names)).any()
    assert [finding.code for finding in check_classes_have_boxes(coco, OnlyRead(names))] == ["no-boxes"]
