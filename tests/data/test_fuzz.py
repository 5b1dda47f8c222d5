"""`check-data` and training agree on annotation files with random faults.

SPARSE_DETR_FUZZ_FILES sets how many files are made, SPARSE_DETR_FUZZ_SEED with which faults.
"""

import contextlib
import copy
import io
import json
import logging
import os
import random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from pycocotools.coco import COCO

from sparse_detr.data.check import check_data
from sparse_detr.data.loader import build_train_loader
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.data.register import register_own_data
from sparse_detr.errors import UserError
from tests.data.conftest import NEVER_READ, coco_content, write_coco

NUM_FILES = int(os.environ.get("SPARSE_DETR_FUZZ_FILES", "2000"))
SEED = int(os.environ.get("SPARSE_DETR_FUZZ_SEED", "0"))
DECODE_EVERY = 10  # reading the images takes longer than all the rest

NUMBERS = [0, 1, -1, 2, 3, 99, 0.5, 1e-9, 7.0, 1e30, -1e30, 2**53, 2**63, 10**400, float("nan"), float("inf"), True]
TEXTS = ["", "0", "1", "false", "no", "yes", "x", "1.png", "2.png", "class 1", "é猫", "\ud800", "a\x00b", "../1.png"]
NESTED = [None, [], {}, [1], [[]], [[[1]]], {"a": {"b": []}}, [None] * 4, ["1", "2", "3", "4"], [1, 2, 3, 4, 5]]
BOXES = [[2, 3, 0, 0], [2, 3, -4, 5], [35, 25, 50, 50], [100, 100, 5, 5], [0.1, 0.2, 0.3, 0.4], [20, 20, 40, 30]]
BOXES += [[2, 3, 1e-7, 5], [39.99999, 3, 1e-6, 2], [10**30, 1, 10**30, 1], [1e308, 0, 1e308, 5], [-20, -20, 21, 21]]
MASKS = [[[2, 3, 12, 11]], [2, 3, 12, 3, 12, 11], {"size": [30, 40], "counts": [5, 10, 1185]}, {"size": [30, 40]}]
MASKS += [{"size": [30, 40], "counts": text} for text in ("", "zz", "oooo", "PPP0", "0", "\x7f")]
FLAGS = [0, 1, "0", "1", "false", "true", 2, [1], None, 0.0, "no", float("nan"), {}]


def mutate(content, rng):
    """Put one to four faults into `content`."""
    for _ in range(rng.randint(1, 4)):
        rng.choice([set_field, set_field, set_known_field, remove_field, set_all, repeat_entry, remove_entry])(
            content, rng
        )


def some_list(content, rng):
    """Return one of the three lists; [] if a fault has replaced it."""
    found = content.get(rng.choice(["images", "annotations", "annotations", "categories"]))
    return found if isinstance(found, list) else []


def some_entry(content, rng):
    entries = [entry for entry in some_list(content, rng) if isinstance(entry, dict)]
    return rng.choice(entries) if entries else {}


def some_value(rng):
    return copy.deepcopy(rng.choice(rng.choice([NUMBERS, TEXTS, NESTED, BOXES, MASKS])))


def known_field(rng):
    """Return a field and a value that occur in real files."""
    choices = [("iscrowd", rng.choice(FLAGS)), ("bbox", rng.choice(BOXES)), ("segmentation", rng.choice(MASKS))]
    return copy.deepcopy(rng.choice([*choices, rng.choice(NEVER_READ), ("category_id", 2), ("image_id", 77)]))


def set_field(content, rng):
    entry = some_entry(content, rng)
    entry[rng.choice([*entry, "extra"])] = some_value(rng)


def set_known_field(content, rng):
    name, value = known_field(rng)
    some_entry(content, rng)[name] = value


def set_all(content, rng):
    name, value = known_field(rng)
    annotations = content.get("annotations")
    for entry in annotations if isinstance(annotations, list) else []:
        if isinstance(entry, dict):
            entry[name] = copy.deepcopy(value)


def remove_field(content, rng):
    entry = some_entry(content, rng)
    entry.pop(rng.choice([*entry, ""]), None)


def repeat_entry(content, rng):
    entries = some_list(content, rng)
    if entries:
        entries.append({**entries[0], **rng.choice([{}, {"id": 50}])} if isinstance(entries[0], dict) else entries[0])


def remove_entry(content, rng):
    entries = some_list(content, rng)
    if rng.random() < 0.2:
        content[rng.choice(list(content))] = some_value(rng)
    elif entries:
        entries.pop(rng.randrange(len(entries)))


def encode(content, rng):
    """Return the bytes of a file; some files are truncated or in another encoding."""
    text = json.dumps(content, ensure_ascii=rng.random() < 0.9)
    kind = rng.random()
    if kind < 0.02:
        return text[: rng.randrange(len(text))].encode("utf-8", "surrogatepass")
    encoding = "utf-8-sig" if kind < 0.05 else "utf-16" if kind < 0.07 else "latin-1" if kind < 0.09 else "utf-8"
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")


def verdict_of_check(path, folder, **options):
    """Return whether the check lets training go on, the number of boxes, and whether it has no findings."""
    try:
        report = check_data(path, folder, max_bad_share=0.5, **options)
    except UserError:
        return False, 0, False
    assert str(report).encode("utf-8")
    return not report.stops_training, report.facts["boxes to train on"], not report.findings


def verdict_of_training(path, folder, **options):
    """Return whether training starts, and the number of boxes of the training, of a batch and of the evaluation."""
    try:
        files = {
            f"{split}_{kind}": file for split in ("train", "val") for kind, file in (("json", path), ("images", folder))
        }
        own = register_own_data(**files, max_bad_share=0.5, **options)
        records = get_detection_dataset_dicts([own.train_name], filter_empty=False)
        mapper = DetrDatasetMapper(is_train=True, augmentations=[])
        loader = build_train_loader(dataset=records, mapper=mapper, total_batch_size=1, max_bad_share=0.5)
        mapped = {sample["image_id"]: sample for sample in (mapper(record) for record in records) if sample}
        assert len(next(iter(loader))) == 1
    except UserError:
        return False, 0, 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(MetadataCatalog.get(own.val_name).json_file)
    boxes = [box for box in truth.anns.values() if not box["iscrowd"] and box["image_id"] in mapped]
    assert all(len(box["bbox"]) == 4 for box in boxes)
    return True, sum(len(sample["instances"]) for sample in mapped.values()), len(boxes)


@pytest.fixture
def clean_catalog(caplog):
    """Remove the registered data sets afterwards; meanwhile log nothing, since there are thousands of files."""
    caplog.set_level(logging.CRITICAL)
    yield
    for name in [name for name in DatasetCatalog.list() if "_fuzzed_" in name]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_check_agrees_with_the_training_on_files_with_random_faults(tmp_path, clean_catalog):
    sound = coco_content(num_images=4)
    write_coco(tmp_path, sound)
    path, started = tmp_path / "fuzzed.json", 0
    for number in range(NUM_FILES):
        rng = random.Random(f"{SEED} {number}")
        content = copy.deepcopy(sound)
        mutate(content, rng)
        path.write_bytes(encode(content, rng))
        options = {"boxes_from_masks": rng.random() < 0.3}

        starts, boxes, judged = verdict_of_training(path, tmp_path, **options)
        goes_on, counted, is_silent = verdict_of_check(
            path, tmp_path, decode_images=number % DECODE_EVERY == 0, **options
        )

        kept = f"file {number}: {path.read_bytes()[:2000]!r}"
        if number % DECODE_EVERY == 0 or starts:
            assert goes_on == starts, kept
        assert not is_silent or (starts and boxes), kept
        if starts:
            assert boxes > 0, kept
            assert boxes == judged, kept
            assert (counted == boxes) or (number % DECODE_EVERY and counted > boxes), kept
        started += starts
    assert NUM_FILES * 0.1 < started < NUM_FILES * 0.9
