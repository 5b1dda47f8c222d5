import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparse_detr.data.annotations import read_coco_file
from sparse_detr.data.check import check_data
from sparse_detr.errors import UserError
from tests.data.conftest import coco_content, write_coco


def check(folder, content, **options):
    return check_data(write_coco(folder, content), folder, **options)


def codes(report):
    return [finding.code for finding in report.findings]


def test_a_sound_data_set_is_described_and_nothing_is_wrong(tmp_path):
    content = coco_content(num_images=5, num_categories=2)
    content["images"].append({"id": 6, "file_name": "6.png", "width": 200, "height": 200})
    content["annotations"] += [
        content["annotations"][0] | {"id": 20, "image_id": 6, "bbox": [0, 0, 32, 32]},
        content["annotations"][0] | {"id": 21, "image_id": 6, "bbox": [0, 0, 150, 100]},
    ]
    content["images"].append({"id": 7, "file_name": "7.png", "width": 20, "height": 20})

    report = check(tmp_path, content)

    assert report.findings == []
    assert not report.stops_training
    assert report.boxes_per_class == {"class 1 (id 1)": 5, "class 2 (id 2)": 2}
    assert report.facts == {
        "images": 7,
        "images without boxes": 1,
        "classes": 2,
        "class ids left out between the first and the last": 0,
        "annotations": 7,
        "crowds, which training leaves out": 0,
        "boxes to train on": 7,
        "most boxes of an image": 2,
        "small boxes (area below 32^2 pixels)": 5,
        "medium boxes (below 96^2)": 1,
        "large boxes": 1,
    }
    assert "nothing is wrong" in str(report)


def test_gaps_crowds_and_faulty_boxes_are_counted(tmp_path):
    content = coco_content(num_categories=1)
    content["categories"].append({"id": 10, "name": "ten"})
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"] = [1, 1, 0, 0]

    report = check(tmp_path, content)

    assert report.facts["class ids left out between the first and the last"] == 8
    assert report.facts["crowds, which training leaves out"] == 1
    assert report.facts["boxes to train on"] == 1
    assert report.facts["images without boxes"] == 2
    assert codes(report) == ["absent-category", "degenerate-box"]


def test_every_kind_of_unusable_image_is_reported_with_its_file(tmp_path):
    content = coco_content(num_images=5, num_categories=1)
    write_coco(tmp_path, content)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:100])
    (tmp_path / "3.png").write_bytes(b"")
    Image.fromarray(np.zeros((40, 30, 3), dtype=np.uint8)).save(tmp_path / "4.png")

    report = check_data(tmp_path / "annotations.json", tmp_path, max_bad_share=0.9)

    found = {finding.code: finding for finding in report.findings}
    assert set(found) == {"missing-image", "corrupt-image", "image-size"}
    assert found["missing-image"].examples == ("1.png",)
    assert found["corrupt-image"].count == 2
    assert "2.png" in found["corrupt-image"].examples[0]
    assert "is 30x40 (width x height, sides swapped: EXIF orientation?)" in found["image-size"].examples[0]
    assert not report.stops_training


def test_too_many_unusable_images_stop_the_training(tmp_path):
    write_coco(tmp_path, coco_content(num_images=4))
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes(b"")

    report = check_data(tmp_path / "annotations.json", tmp_path)

    assert report.stops_training
    assert str(report.findings[0]).startswith("2 of 4 images cannot be used, more than the allowed share of 1.00%")


def test_images_are_not_read_if_decoding_is_off(tmp_path):
    write_coco(tmp_path, coco_content())
    (tmp_path / "1.png").write_bytes(b"")

    assert codes(check_data(tmp_path / "annotations.json", tmp_path, decode_images=False)) == []


def test_images_with_more_boxes_than_queries_are_reported(tmp_path):
    content = coco_content()
    content["annotations"] += [content["annotations"][0] | {"id": 10 + x, "bbox": [x, 0, 5, 5]} for x in range(3)]

    report = check(tmp_path, content, num_queries=3)

    assert [str(finding) for finding in report.findings] == [
        "1 images have more boxes than the model's 3 queries; it cannot detect them all (1.png: 4)"
    ]


def test_errors_come_first(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [1, 1, 0, 0]
    content["annotations"][1]["category_id"] = 9

    report = check(tmp_path, content)

    assert report.stops_training
    assert codes(report)[0] == "unknown-category"
    assert str(report).index("error: 1 annotations") < str(report).index("warning: 1 boxes")


def test_the_report_is_json_for_programs(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [1, 1, 0, 0]

    report = json.loads(check(tmp_path, content).to_json())

    assert report["findings"][0]["code"] == "degenerate-box"
    assert report["findings"][0]["count"] == 1
    assert report["stops_training"] is False
    assert report["facts"]["images"] == 3


def test_a_file_that_is_not_coco_is_refused(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text('{"images": [')

    with pytest.raises(UserError, match="not complete JSON"):
        check_data(path, tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_content_makes_the_check_itself_fail(data, tmp_path_factory):
    content = coco_content()
    for _ in range(data.draw(st.integers(1, 4))):
        entry = data.draw(st.sampled_from([item for key in content for item in content[key] if isinstance(item, dict)]))
        entry[data.draw(st.sampled_from([*entry, "segmentation", "ignore"]))] = data.draw(VALUES)
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(content))

    for finding in check_data(path, path.parent, decode_images=False).findings:
        assert finding.count >= max(1, len(finding.examples))
        assert str(finding)


def without_boxes(segmentation):
    content = coco_content()
    for annotation in content["annotations"]:
        del annotation["bbox"]
        annotation["segmentation"] = segmentation
    return content


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 3, 12, 3, 12, 11]],
        [2, 3, 12, 3, 12, 11, 2, 11],
        [[2, 3, 4, 3, 4, 5], [12, 11, 5, 5, 6, 6]],
        {"size": [30, 40], "counts": [63, *[8, 22] * 9, 8, 859]},
    ],
)
def test_boxes_are_taken_from_masks_on_request_and_counted(tmp_path, segmentation):
    path = write_coco(tmp_path, without_boxes(segmentation))

    assert "--boxes-from-masks" in str(check_data(path, tmp_path))
    report = check_data(path, tmp_path, boxes_from_masks=True)

    assert read_coco_file(path, boxes_from_masks=True).boxes.tolist() == [[2, 3, 10, 8]] * 3
    assert report.facts["boxes to train on"] == 3
    assert "3 annotations have no 'bbox' and were given the box around their mask" in str(report)


@pytest.mark.parametrize(
    "segmentation", [[], [[1]], {"size": [1, 1], "counts": [1]}, {"size": [30, 40], "counts": "oo"}]
)
def test_a_mask_that_gives_no_box_stays_an_error(tmp_path, segmentation):
    assert check(tmp_path, without_boxes(segmentation), boxes_from_masks=True).stops_training


def test_boxes_in_other_units_are_reported_with_the_remedy(tmp_path):
    content = coco_content()
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.2, 0.1, 0.5, 0.4]
    assert "multiply by the image's width and height" in str(check(tmp_path, content))
    for annotation in content["annotations"]:
        annotation["bbox"] = [20, 15, 38, 28]
    assert "write x1, y1, x2 - x1, y2 - y1" in str(check(tmp_path, content))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_file_with_a_byte_order_mark_is_read(tmp_path, encoding):
    path = write_coco(tmp_path, coco_content())
    path.write_bytes(path.read_text().encode(encoding))

    assert check_data(path, tmp_path).findings == []


def test_another_encoding_and_too_large_numbers_are_named(tmp_path):
    path = write_coco(tmp_path, coco_content())
    path.write_bytes(path.read_text().replace("class 1", "ch\xe4t").encode("latin-1"))
    with pytest.raises(UserError, match="is 0xe4.*save it as UTF-8"):
        check_data(path, tmp_path)
    content = coco_content()
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 2**53

    report = check(tmp_path, content)

    assert "2^53" in str(report)
    assert "annotation-fields" not in codes(report)


def test_a_file_without_usable_categories_is_described(tmp_path):
    for categories in ([], [{"id": "1"}], [None]):
        report = check(tmp_path, coco_content() | {"categories": categories})
        assert report.stops_training
        assert "categor" in str(report)
