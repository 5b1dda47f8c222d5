"""Loaders for training and evaluation, built by Detectron2 on this project's order of the data."""

import copy
import logging
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import build_detection_test_loader, build_detection_train_loader
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch.utils.data import DataLoader, Dataset

from sparse_detr.data.boxes import BoxFaults, annotated_boxes, find_box_faults, is_crowd
from sparse_detr.data.images import describe_depth, too_many_bad
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.data.stream import (
    REPLACEMENT,
    SAMPLE,
    BatchStream,
    StreamItem,
    StreamSampler,
    numpy_generator,
    seeded_rng,
)
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Mapper = Callable[[Record], Record | None]


class TrainSamples(Dataset):
    """A map-style data set over items of the stream, with a deterministic replacement for unusable images."""

    def __init__(self, *, records: list[Record], mapper: Mapper, seed: int, max_bad_share: float):
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper
        self.seed = seed
        self.max_bad_share = max_bad_share
        self.is_bad = torch.zeros(len(records), dtype=torch.bool).share_memory_()  # shared by all workers

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: StreamItem) -> Record:
        for index in self._candidates(item):
            if self.is_bad[index]:
                continue
            with seeded_rng(SAMPLE, self.seed, item.position):
                sample = self.mapper(self.records[index])
            if sample is not None:
                return sample
            self.is_bad[index] = True
            if self.must_stop():
                break
        raise self.too_many_bad_error()

    def num_bad(self) -> int:
        """Count the images that the workers of this process have found unusable so far."""
        return int(self.is_bad.sum())

    def must_stop(self) -> bool:
        """Return whether too many images are unusable, or all images with boxes to train on."""
        bad = self.num_bad()
        return bad == len(self) or self.has_lost_boxes() or too_many_bad(bad, len(self), self.max_bad_share)

    @cached_property
    def has_boxes(self) -> torch.Tensor:
        """Return an (images,) mask of the images with a box to train on."""
        records = (self.records[index] for index in range(len(self)))
        return torch.tensor([bool(_targets(record).any()) for record in records], dtype=torch.bool)

    def has_lost_boxes(self) -> bool:
        """Return whether all images with boxes are unusable."""
        return bool(self.is_bad.any()) and not bool((self.has_boxes & ~self.is_bad).any())

    def too_many_bad_error(self) -> UserError:
        examples = [self.records[int(index)].get("file_name", "?") for index in self.is_bad.nonzero()[:3]]
        if self.has_lost_boxes() and self.num_bad() < len(self):
            return UserError(
                f"the {self.num_bad()} images that cannot be used hold all boxes, so none is left to train on: "
                f"{', '.join(examples)}; run `sparse-detr check-data`, then mend these images"
            )
        return UserError(
            f"{self.num_bad()} of {len(self)} images cannot be used, more than the allowed share of "
            f"{self.max_bad_share:.2%}: {', '.join(examples)}, ...; the log names each with its reason; run "
            "`sparse-detr check-data` to list them all, then mend or remove them, or raise max_bad_share"
        )

    def _candidates(self, item: StreamItem) -> Iterator[int]:
        """Yield the index of the image, then those of the others in an order that depends on the position only."""
        yield item.index
        yield from numpy_generator(REPLACEMENT, self.seed, item.position).permutation(len(self)).tolist()


class TrainLoader:
    """An endless iterable over the batches of this process, lists of mapped records, from a Detectron2 loader."""

    def __init__(self, *, loader: DataLoader, samples: TrainSamples, sampler: StreamSampler):
        self.loader = loader
        self.samples = samples
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[Record]]:
        try:
            for batch in self.loader:
                self._report_bad_images()
                yield batch
        except UserError as error:
            if self.samples.must_stop():  # raise it again without the traceback of the worker process
                error.__traceback__ = None  # its frames would keep the workers alive
                raise self.samples.too_many_bad_error() from None
            raise

    def _report_bad_images(self) -> None:
        bad = self.samples.num_bad()
        if bad and has_event_storage():
            get_event_storage().put_scalar("data/bad_images", bad, smoothing_hint=False)


def set_start_iteration(loader: TrainLoader, iteration: int) -> None:
    """Let the next `iter(loader)` begin with the batch of `iteration`, for a resumed training."""
    loader.sampler.start_iteration = iteration


def _train_loader_from_config(cfg, *, mapper: Mapper | None = None) -> dict[str, Any]:
    return {
        "dataset": get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        ),
        "mapper": mapper or DetrDatasetMapper(cfg, is_train=True),
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": cfg.SEED,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "max_bad_share": cfg.DATALOADER.get("MAX_BAD_SHARE", 0.01),  # not among Detectron2's own keys
    }


@configurable(from_config=_train_loader_from_config)
def build_train_loader(
    *,
    dataset: list[Record],
    mapper: Mapper,
    total_batch_size: int,
    num_workers: int = 0,
    seed: int = 0,
    aspect_ratio_grouping: bool = True,
    max_bad_share: float = 0.01,
) -> TrainLoader:
    """Build the training loader; also callable with a yacs config as its only argument.

    Args:
        dataset: records in Detectron2's format, as `get_detection_dataset_dicts` returns them.
        mapper: makes an input of the model from a record; None if the image cannot be used.
        total_batch_size: images of a batch over all processes.
        num_workers: data-loading processes for each training process; the data do not depend on it.
        seed: of the order and the augmentation of the data; a negative one is replaced by a random one, which all
            processes share.
        aspect_ratio_grouping: make batches of wide or of tall images only, to save padding.
        max_bad_share: stop when more than this share of the images cannot be used.
    """
    world_size = comm.get_world_size()
    _check_arguments(dataset, total_batch_size, world_size)
    seed = seed if seed >= 0 else comm.shared_random_seed()
    _check_training_boxes(dataset)
    _log_depth(dataset, mapper)
    stream = BatchStream(groups=_groups(dataset, aspect_ratio_grouping), batch_size=total_batch_size, seed=seed)
    sampler = StreamSampler(stream=stream, rank=comm.get_rank(), world_size=world_size)
    samples = TrainSamples(records=dataset, mapper=mapper, seed=seed, max_bad_share=max_bad_share)
    loader = build_detection_train_loader(
        dataset=samples,
        mapper=None,
        sampler=sampler,
        total_batch_size=total_batch_size,
        aspect_ratio_grouping=False,  # done on the indices already
        num_workers=num_workers,
        seed=seed,  # of a separate generator: starting workers must not draw from the global one
    )
    return TrainLoader(loader=loader, samples=samples, sampler=sampler)


class TestSamples(Dataset):
    """Mapped records in order; a black image replaces an unusable one, so that every image has a prediction.

    Detectron2 would instead predict another image twice.
    """

    __test__ = False  # not a test, despite its name

    def __init__(self, *, records: list[Record], mapper: Mapper):
        self.records = DatasetFromList(records, copy=False)
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        sample = self.mapper(record)
        return sample if sample is not None else self._without_image(record)

    @staticmethod
    def _without_image(record: Record) -> Record:
        logger.warning("%s counts as an image without detections", record["file_name"])
        kept = {key: value for key, value in record.items() if key != "annotations"}
        return {"height": 64, "width": 64, **kept, "image": torch.zeros(3, 64, 64, dtype=torch.uint8)}


def build_test_loader(
    *, dataset: list[Record], mapper: Mapper, batch_size: int = 1, num_workers: int = 0
) -> DataLoader:
    """Build the loader for evaluation: every image once, in order, divided among the processes.

    Args:
        dataset: records in Detectron2's format.
        mapper: makes an input of the model from a record; None if the image cannot be used.
        batch_size: images of a batch of each process.
        num_workers: data-loading processes for each process.
    """
    samples = TestSamples(records=dataset, mapper=mapper)
    return build_detection_test_loader(samples, mapper=None, batch_size=batch_size, num_workers=num_workers)


def loader_with_targets(loader: Any, num_batches: int | None = None) -> DataLoader:
    """Return a loader of the same images, in the same form, with their true boxes as `instances`.

    Args:
        loader: of `build_test_loader`.
        num_batches: take so many batches of images at equal distances; None for all images.

    Raises:
        UserError: the loader or its mapper is of another kind.
    """
    samples = getattr(loader, "dataset", None)
    mapper = copy.copy(samples.mapper) if isinstance(samples, TestSamples) else None
    if mapper is None or not hasattr(mapper, "is_train"):
        raise UserError(
            "the losses of the evaluation data need dataloader.test by sparse_detr.data.loader.build_test_loader, with "
            "a mapper that has is_train, as DetrDatasetMapper; use these, or switch train.validation_loss off"
        )
    mapper.is_train = True
    number = len(samples) if num_batches is None else min(num_batches * loader.batch_size, len(samples))
    records = [samples.records[index * len(samples) // number] for index in range(number)]
    options = {"batch_size": loader.batch_size, "num_workers": loader.num_workers}
    return build_test_loader(dataset=records, mapper=mapper, **options)


def _check_arguments(dataset: list[Record], total_batch_size: int, world_size: int) -> None:
    if len(dataset) == 0:
        raise UserError("the training data set has no image; check the annotation file with `sparse-detr check-data`")
    if total_batch_size < 1 or total_batch_size % world_size:
        raise UserError(
            f"total_batch_size {total_batch_size} cannot be used; give a multiple of the {world_size} processes"
        )


def _groups(dataset: list[Record], aspect_ratio_grouping: bool) -> list[int]:
    """Return 0 for square and tall, 1 for wide images; 0 for all without grouping or without recorded sizes."""
    return [int(aspect_ratio_grouping and record.get("width", 0) > record.get("height", 0)) for record in dataset]


def _check_training_boxes(dataset: list[Record]) -> None:
    """Log how many boxes are left out, and refuse data without a box to train on.

    Records without the key "annotations" pass: then the mapper brings the boxes.
    """
    degenerate = outside = crowds = targets = total = 0
    for record in dataset:
        faults, crowd = _box_faults(record), _crowds(record)
        degenerate += int(faults.degenerate.sum())
        outside += int(faults.outside.sum())
        crowds += int((crowd & faults.usable).sum())
        targets += int((faults.usable & ~crowd).sum())
        total += len(crowd)
    if degenerate or outside:
        logger.warning("dropped boxes: %d without area or not finite, %d outside their image", degenerate, outside)
    if not targets and any("annotations" in record for record in dataset):
        raise UserError(
            f"the training data leave no box to train on: of {total} boxes {crowds} are crowds, {degenerate} without "
            f"area or not finite, {outside} outside their image; "
            "check the annotation file with `sparse-detr check-data`"
        )


def _annotations(record: Record) -> list[dict[str, Any]]:
    return record.get("annotations") or []


def _box_faults(record: Record) -> BoxFaults:
    size = record.get("height", math.inf), record.get("width", math.inf)
    return find_box_faults(annotated_boxes(_annotations(record)), *size)


def _crowds(record: Record) -> np.ndarray:
    return np.array([is_crowd(item) for item in _annotations(record)], dtype=bool)


def _targets(record: Record) -> np.ndarray:
    """Return a (T,) mask of the annotations that training uses."""
    return _box_faults(record).usable & ~_crowds(record)


def _log_depth(dataset: list[Record], mapper: Mapper) -> None:
    """Log how images of more than 8 bits are read, if the first image is one."""
    first = dataset[0].get("file_name") if dataset else None
    if first and isinstance(mapper, DetrDatasetMapper) and (text := describe_depth(first, mapper.value_range)):
        logger.info(text)
