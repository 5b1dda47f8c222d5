"""The doctor finds each planted fault, and nothing else, and is silent on sound data."""

import json

import numpy as np
import pytest
from PIL import Image

from sparse_detr.data.annotations import coco_file_of
from sparse_detr.data.doctor import Source, examine
from sparse_detr.data.plan import Plan, Resize

WIDTH, HEIGHT = 120, 80
PLAN = Plan(num_queries=20, num_detections=None, resize=Resize(160, 400), strides=(8, 16, 32), keep_ratio=0.3)
CLASSES = ["bolt", "nut"]


def picture(seed):
    """Return an image of random soft blobs, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


class Data:
    """A sound data set of two parts in memory and on disk, to plant a fault in."""

    def __init__(self, folder):
        self.folder = folder
        self.train, self.val = self._part(range(1, 13)), self._part(range(21, 27))

    def _part(self, numbers):
        images, annotations = [], []
        for number in numbers:
            picture(number).save(self.folder / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT})
            for index in range(4):
                box = [6 + 28 * index, 10 + 5 * index, 22 + index, 20 + number % 5]
                annotations.append(self.annotation(len(annotations) + 1, number, 1 + index % 2, box))
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    @staticmethod
    def annotation(number, image_id, category_id, box):
        return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(box), "iscrowd": 0}

    def add(self, part, box, *, image_id=None, category_id=1, **fields):
        number = len(part["annotations"]) + 1
        item = self.annotation(number, image_id or part["images"][0]["id"], category_id, box)
        part["annotations"].append(item | fields)

    def every(self, change):
        for part in (self.train, self.val):
            for item in part["annotations"]:
                change(item)

    def examine(self, plan=PLAN, **options):
        train, val = (
            Source(coco_file_of(self.folder / name, part, boxes_from_masks=True), self.folder)
            for name, part in (("train.json", self.train), ("val.json", self.val))
        )
        return examine(train, val, plan, **options)[0]


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def faults(diagnosis):
    """Return the codes of errors and warnings of both parts."""
    findings = [*diagnosis.train.findings, *diagnosis.val.findings]
    return {finding.code for finding in findings if finding.severity != "note"}


def test_nothing_is_wrong_with_sound_data(data):
    diagnosis = data.examine()
    assert diagnosis.train.findings == diagnosis.val.findings == []
    assert diagnosis.is_sound
    assert not diagnosis.stops_training
    assert "nothing is wrong" in str(diagnosis.train)
    assert diagnosis.changes == []


def missing(data):
    (data.folder / "3.png").unlink()


def corrupt(data):
    path = data.folder / "3.png"
    path.write_bytes(path.read_bytes()[:200])


def empty_file(data):
    (data.folder / "23.png").write_bytes(b"")


def turned(data):
    path = data.folder / "3.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)


def without_area(data):
    data.add(data.train, [5, 5, 0, 9])


def outside(data):
    data.add(data.train, [WIDTH + 5, 5, 9, 9])


def over_the_border(data):
    data.add(data.train, [WIDTH - 12, 50, 24, 24])


def same_box(data):
    data.train["annotations"].append(data.train["annotations"][0] | {"id": 999})


def nearly_same_box(data):
    x, y, width, height = data.train["annotations"][0]["bbox"]
    data.add(data.train, [x, y, width, height + 0.5])


def two_classes(data):
    data.add(data.train, data.train["annotations"][0]["bbox"], category_id=2)


def as_shares(data):
    def change(item):
        x, y, width, height = item["bbox"]
        item["bbox"] = [x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT]

    data.every(change)


def as_corners(data):
    def change(item):
        x, y, width, height = item["bbox"]
        item["bbox"] = [x, y, x + width, y + height]

    data.every(change)


def unused_class(data):
    for part in (data.train, data.val):
        part["categories"].append({"id": 3, "name": "washer"})


def name_twice(data):
    for part in (data.train, data.val):
        part["categories"][1]["name"] = "bolt"


def similar_names(data):
    for part in (data.train, data.val):
        part["categories"][1]["name"] = "Bolts "


def unknown_class(data):
    data.add(data.train, [5, 5, 20, 20], category_id=9)


def unknown_image(data):
    data.add(data.train, [5, 5, 20, 20], image_id=777)


def odd_crowd(data):
    data.train["annotations"][0]["iscrowd"] = 2


def file_twice(data):
    data.train["images"].append(data.train["images"][0] | {"id": 500})


def id_twice(data):
    data.train["annotations"][1]["id"] = data.train["annotations"][0]["id"]


def other_classes(data):
    data.val["categories"][0]["name"] = "screw"


def copy_in_train(data):
    (data.folder / "3.png").write_bytes((data.folder / "5.png").read_bytes())


def leak(data):
    (data.folder / "23.png").write_bytes((data.folder / "5.png").read_bytes())


def leak_saved_again(data):
    image = Image.open(data.folder / "5.png").convert("RGB")
    image.resize((90, 60)).resize((WIDTH, HEIGHT)).point(lambda value: value * 0.9 + 10).save(
        data.folder / "23.png", format="JPEG", quality=60
    )


def only_in_training(data):
    for item in data.val["annotations"]:
        item["category_id"] = 1


def only_in_validation(data):
    for item in data.train["annotations"]:
        item["category_id"] = 1


def uneven(data):
    seconds = [item for item in data.val["annotations"] if item["category_id"] == 2]
    for item in seconds[:-2]:
        item["category_id"] = 1


def imbalance(data):
    for part in (data.train, data.val):
        for item in part["annotations"][1:]:
            item["category_id"] = 1
        part["annotations"][0]["category_id"] = 2
    for image in data.train["images"]:
        for index in range(6):
            data.add(data.train, [3 + 18 * index, 60, 14, 14 + index], image_id=image["id"])


def tiny_objects(data):
    data.every(lambda item: item.update(bbox=[*item["bbox"][:2], 3, 3]))


def below_a_token(data):
    data.every(lambda item: item.update(bbox=[*item["bbox"][:2], 6, 6]))
    return {"strides": (16, 32)}


def many_boxes(data):
    for index in range(20):
        data.add(data.train, [5 * index, 40 + index, 15, 15])


def more_than_detections(data):
    many_boxes(data)
    return {"num_queries": None, "num_detections": 20}


def more_than_coco(data):
    for index in range(202):
        box = [1 + index % 20 * 5, 5 + index // 20 * 6, 12, 10]
        data.add(data.val, box, category_id=1 + index % 2)
    return {"num_queries": None}


def more_than_evaluated(data):
    return {"evaluation_limit": 1}


def few_tokens(data):
    return {"keep_ratio": 0.01}


def one_box_an_image(data, box):
    for part in (data.train, data.val):
        first = {item["image_id"]: item for item in reversed(part["annotations"])}
        part["annotations"] = [
            item | {"bbox": list(box), "category_id": 1 + image_id % 2} for image_id, item in first.items()
        ]


def cut_objects(data):
    one_box_an_image(data, [5, 5, 90, 60])
    return {"crops": True}


def whole_images(data):
    one_box_an_image(data, [0, 0, WIDTH, HEIGHT])


def mostly_empty(data):
    data.train["annotations"] = [item for item in data.train["annotations"] if item["image_id"] <= 4]


def dark(data):
    values = np.random.default_rng(3).integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16)
    Image.fromarray(values).save(data.folder / "3.png")


def masks_only(data):
    item = data.train["annotations"][0]
    x, y, width, height = item.pop("bbox")
    item["segmentation"] = [[x, y, x + width, y, x + width, y + height]]


def only_crowds(data):
    for item in data.train["annotations"]:
        item["iscrowd"] = 1


# fault: its code, and those that follow from it.
PLANTED = [
    (missing, "missing-image", ()),
    (corrupt, "corrupt-image", ()),
    (empty_file, "corrupt-image", ()),
    (turned, "image-size", ()),
    (without_area, "degenerate-box", ()),
    (outside, "outside-box", ()),
    (over_the_border, "clipped-box", ()),
    (same_box, "duplicate-box", ()),
    (nearly_same_box, "object-boxed-twice", ()),
    (two_classes, "conflicting-classes", ()),
    (as_shares, "boxes-as-shares", ("small-objects", "objects-without-token")),
    (as_corners, "boxes-as-corners", ("clipped-box",)),
    (unused_class, "absent-category", ()),
    (name_twice, "duplicate-category-name", ()),
    (similar_names, "similar-class-names", ()),
    (unknown_class, "unknown-category", ()),
    (unknown_image, "unknown-image", ()),
    (odd_crowd, "crowd-flag", ()),
    (file_twice, "duplicate-file-name", ()),
    (id_twice, "duplicate-annotation-id", ()),
    (other_classes, "other-classes", ()),
    (copy_in_train, "duplicate-image", ()),
    (leak, "leaked-image", ()),
    (leak_saved_again, "near-leaked-image", ()),
    (only_in_training, "class-not-in-validation", ("absent-category",)),
    (only_in_validation, "class-only-in-validation", ("absent-category",)),
    (uneven, "uneven-split", ()),
    (imbalance, "class-imbalance", ()),
    (tiny_objects, "small-objects", ("objects-without-token",)),
    (below_a_token, "objects-without-token", ()),
    (many_boxes, "too-many-boxes", ()),
    (more_than_detections, "more-boxes-than-detections", ()),
    (more_than_coco, "more-boxes-than-coco-counts", ()),
    (more_than_evaluated, "more-boxes-than-evaluated", ()),
    (few_tokens, "few-kept-tokens", ()),
    (cut_objects, "crops-of-large-objects", ()),
    (whole_images, "whole-image-box", ()),
    (mostly_empty, "mostly-empty", ()),
    (dark, "dark-images", ()),
    (masks_only, "boxes-from-masks", ()),
    (only_crowds, "no-boxes", ()),
]
ERRORS = {"unknown-category", "crowd-flag", "duplicate-annotation-id", "other-classes", "no-boxes"}


@pytest.mark.parametrize(("plant", "code", "also"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found_and_no_other(data, plant, code, also):
    plan = PLAN.__class__(**{**vars(PLAN), **(plant(data) or {})})
    diagnosis = data.examine(plan)
    found = faults(diagnosis)
    assert code in found
    assert found <= {code, *also}
    assert diagnosis.stops_training == (code in ERRORS)
    assert not diagnosis.is_sound


def test_more_than_twenty_faults_are_planted():
    assert len({code for _, code, _ in PLANTED}) > 30


def test_a_part_in_which_all_images_are_those_of_the_training_is_named_as_such(data):
    data.val = data.train
    (finding,) = [finding for finding in data.examine().train.findings if finding.severity == "warning"]
    assert (finding.code, finding.count) == ("leaked-image", 12)
    assert finding.examples[0] == "1.png = 1.png"


def test_frames_that_are_nearly_the_same_within_the_training_are_a_note(data):
    leak_saved_again(data)
    (data.folder / "23.png").replace(data.folder / "7.png")
    picture(23).save(data.folder / "23.png")
    (finding,) = data.examine().train.findings
    assert (finding.code, finding.severity) == ("near-duplicate-image", "note")
    assert finding.examples == ("7.png ~ 5.png",)
    assert data.examine().is_sound


def test_no_duplicates_are_looked_for_without_reading_the_images(data):
    leak(data)
    assert data.examine(decode_images=False).is_sound


def test_the_report_for_programs_holds_both_parts(data):
    leak(data)
    many_boxes(data)
    content = json.loads(data.examine().to_json())
    assert {finding["code"] for finding in content["findings"]} == {"leaked-image", "too-many-boxes"}
    assert content["validation"]["findings"] == []
    assert content["changes"][0] == {
        "key": "model.queries.num_queries",
        "value": 50,
        "reason": "an image has 24 boxes; half as many queries more, since not each finds its object",
    }
    assert content["preset"]["name"] == "photos"
    assert content["stops_training"] is False
