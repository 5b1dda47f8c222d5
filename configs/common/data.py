# ruff: noqa: C408 - dict(key=value) reads like the LazyCalls around it
"""Data loaders for detection on COCO with DETR's augmentation."""

from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from sparse_detr.data.augmentation import test_augmentations, train_augmentations
from sparse_detr.data.loader import build_test_loader, build_train_loader
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.evaluation import COCOEvaluator

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=False),
        mapper=L(DetrDatasetMapper)(
            is_train=True,
            augmentations=L(train_augmentations)(),
            image_format="RGB",
            value_range=None,  # [black, white] of gray images of more than 8 bits
            draft_short_side=None,  # 800: decode JPEGs of 1600 pixels and more at a part of their size, which is faster
        ),
        total_batch_size=16,
        num_workers=4,
        seed="${train.seed}",
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
        mapper=L(DetrDatasetMapper)(
            is_train=False,
            augmentations=L(test_augmentations)(),
            image_format="${...train.mapper.image_format}",
            value_range="${...train.mapper.value_range}",
        ),
        batch_size=1,
        num_workers=4,
    ),
    evaluator=L(COCOEvaluator)(
        dataset_name="${..test.dataset.names}",
        tasks=["bbox"],
        output_dir="${train.output_dir}/inference",
    ),
)
