import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from sparse_detr.data.augmentation import test_augmentations, train_augmentations
from sparse_detr.data.loader import build_test_loader, build_train_loader, set_start_iteration
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.errors import UserError


def train_mapper():
    augmentations = train_augmentations(
        short_sizes=(16, 20, 24), max_size=48, crop_range=(12, 20), crop_short_sizes=(20, 24), color_jitter=0.2
    )
    return DetrDatasetMapper(is_train=True, augmentations=augmentations)


def make_loader(records, *, batch_size=4, **options):
    return build_train_loader(dataset=records, mapper=train_mapper(), total_batch_size=batch_size, **options)


def same_sample(one, other):
    return (
        one["image_id"] == other["image_id"]
        and torch.equal(one["image"], other["image"])
        and torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
    )


def same_batches(one, other):
    return len(one) == len(other) and all(
        len(a) == len(b) and all(map(same_sample, a, b)) for a, b in zip(one, other, strict=True)
    )


def test_a_resumed_stream_equals_the_tail_of_an_uninterrupted_one(records):
    whole = list(islice(make_loader(records), 9))
    resumed = make_loader(records)
    set_start_iteration(resumed, 4)

    assert same_batches(list(islice(resumed, 5)), whole[4:])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_data_do_not_depend_on_the_number_of_workers(records, num_workers):
    alone = make_loader(records)
    helped = make_loader(records, num_workers=num_workers)
    for loader in (alone, helped):
        set_start_iteration(loader, 3)

    assert same_batches(list(islice(alone, 7)), list(islice(helped, 7)))


def test_two_processes_get_the_images_of_one_with_the_joint_batch(records, monkeypatch):
    joint = list(islice(make_loader(records), 6))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(list(islice(make_loader(records), 6)))

    assert same_batches([a + b for a, b in zip(*shares, strict=True)], joint)


def test_images_of_a_batch_are_all_wide_or_all_tall(records):
    batches = list(islice(make_loader(records, batch_size=3), 12))

    assert all(len({sample["width"] > sample["height"] for sample in batch}) == 1 for batch in batches)


def test_loading_does_not_change_the_random_numbers_of_the_training(records):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    list(islice(make_loader(records), 3))

    assert torch.equal(torch.rand(3), expected)


def test_an_image_is_augmented_anew_in_every_epoch(records):
    batches = list(islice(make_loader(records[:1], batch_size=1), 8))

    assert len({tuple(sample["image"].shape) for batch in batches for sample in batch}) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_corrupt_image_is_replaced_logged_once_and_counted(records, num_workers, caplog):
    Path(records[3]["file_name"]).write_bytes(b"not an image")
    loader = make_loader(records, num_workers=num_workers, max_bad_share=0.1)

    with EventStorage() as storage, caplog.at_level(logging.WARNING):
        batches = list(islice(loader, 12))

    assert all(len(batch) == 4 and all(sample["image_id"] != 3 for sample in batch) for batch in batches)
    assert storage.latest()["data/bad_images"][0] == 1
    if num_workers == 0:  # what workers log does not reach the fixture
        assert caplog.text.count("3.png: not an image") == 1


def test_the_replacement_of_a_corrupt_image_does_not_depend_on_workers_or_resuming(records):
    Path(records[3]["file_name"]).write_bytes(b"")
    whole = list(islice(make_loader(records, max_bad_share=0.1), 12))
    resumed = make_loader(records, max_bad_share=0.1, num_workers=2)
    set_start_iteration(resumed, 5)

    assert same_batches(list(islice(resumed, 7)), whole[5:])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_corrupt_images_stop_with_a_message_that_names_some(records, num_workers):
    for record in records[:3]:
        Path(record["file_name"]).unlink()

    with pytest.raises(UserError) as error:
        list(islice(make_loader(records, num_workers=num_workers), 20))

    assert "2 of 12 images cannot be used" in str(error.value) or "3 of 12" in str(error.value)
    assert ".png" in str(error.value)
    assert "check-data" in str(error.value)
    assert "Traceback" not in str(error.value)


def test_a_share_of_zero_allows_no_corrupt_image(records):
    Path(records[3]["file_name"]).unlink()

    with pytest.raises(UserError, match="1 of 12"):
        list(islice(make_loader(records, max_bad_share=0.0), 20))


def test_a_single_corrupt_image_does_not_loop_forever(records):
    Path(records[0]["file_name"]).unlink()

    with pytest.raises(UserError, match="1 of 1 images"):
        next(iter(make_loader(records[:1], batch_size=1, max_bad_share=1.0)))


def test_an_error_of_the_mapper_is_not_taken_for_bad_images(records):
    def mapper(record):
        raise UserError("something else")

    with pytest.raises(UserError, match="something else"):
        next(iter(build_train_loader(dataset=records, mapper=mapper, total_batch_size=2)))


def test_an_empty_data_set_is_refused():
    with pytest.raises(UserError, match="no image"):
        make_loader([])


def test_a_batch_size_that_the_processes_cannot_share_is_refused(records, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)

    with pytest.raises(UserError, match="total_batch_size 4 .* 3 processes"):
        make_loader(records)


def test_boxes_that_will_be_dropped_are_counted_in_the_log(records, caplog):
    records[0]["annotations"][0]["bbox"] = [1.0, 1.0, 0.0, 4.0]
    records[1]["annotations"][0]["bbox"] = [100.0, 1.0, 5.0, 4.0]

    make_loader(records)

    assert "1 without area or not finite, 1 outside" in caplog.text


def test_the_test_loader_gives_every_image_once_in_order(records):
    mapper = DetrDatasetMapper(is_train=False, augmentations=test_augmentations(short_size=16, max_size=32))

    batches = list(build_test_loader(dataset=records, mapper=mapper, batch_size=5))

    assert [sample["image_id"] for batch in batches for sample in batch] == list(range(12))


def test_a_corrupt_image_of_the_test_set_becomes_a_black_one(records):
    Path(records[2]["file_name"]).write_bytes(b"")
    mapper = DetrDatasetMapper(is_train=False, augmentations=test_augmentations(short_size=16, max_size=32))

    samples = [sample for batch in build_test_loader(dataset=records, mapper=mapper) for sample in batch]

    assert [sample["image_id"] for sample in samples] == list(range(12))
    assert samples[2]["image"].sum() == 0
    assert (samples[2]["width"], samples[2]["height"]) == (40, 30)
    assert "annotations" not in samples[2]


@pytest.fixture
def registered_name(records, tmp_path):
    name = str(tmp_path)
    DatasetCatalog.register(name, lambda: records)
    return name


def test_a_lazy_config_builds_the_loader(registered_name):
    augmentations = LazyCall(train_augmentations)(
        short_sizes=[16], max_size=32, crop_range=[12, 20], crop_short_sizes=[20]
    )
    config = LazyCall(build_train_loader)(
        dataset=LazyCall(get_detection_dataset_dicts)(names=registered_name, filter_empty=False),
        mapper=LazyCall(DetrDatasetMapper)(is_train=True, augmentations=augmentations),
        total_batch_size=2,
    )

    batch = next(iter(instantiate(config)))

    assert [min(sample["image"].shape[1:]) for sample in batch] == [16] * 2


def test_a_yacs_config_builds_the_loader(records, registered_name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (registered_name,)
    cfg.SOLVER.IMS_PER_BATCH = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    mapper = train_mapper()

    built = next(iter(build_train_loader(cfg, mapper=mapper)))

    expected = build_train_loader(dataset=records, mapper=mapper, total_batch_size=3, seed=7)
    assert same_batches([built], [next(iter(expected))])
