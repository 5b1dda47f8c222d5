"""The common part of the quick configs: sizes, sample data (aerial tiles, tree crowns), schedule.

A training takes minutes on two CPU cores.
"""

from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from sparse_detr.config.derived import output_dir_of
from sparse_detr.data.register import register_coco_files

from ..common.coco import dataloader, optimizer, train
from ..common.schedule import cosine as lr_multiplier
from .sample import CATEGORY, SPLITS, WEIGHTS_FILE, how_to_make, sample_folder

ONE_MAP = dict(embed_dim=128, encoder_layers=2, decoder_layers=3, feedforward_dim=256, num_queries=100)
SIZES = dict(num_levels=3, **ONE_MAP)

dataloader.register = [
    L(register_coco_files)(
        name=f"trees_{split}",
        annotations=str(sample_folder() / f"{split}.json"),
        images=str(sample_folder() / split),
        class_names=[CATEGORY["name"]],
        remedy=how_to_make(),
    )
    for split in SPLITS
]
instantiate(
    dataloader.register
)  # for Detectron2's own tools; this project's tools call `dataloader.register` themselves
dataloader.train.dataset.names, dataloader.test.dataset.names = "trees_train", "trees_val"
dataloader.train.mapper.augmentations.update(
    short_sizes=[384],
    max_size=384,
    crop_range=(256, 384),
    crop_short_sizes=[384, 448, 512],
    flip="both",
    color_jitter=0.3,
)
dataloader.test.mapper.augmentations.update(short_size=384, max_size=384)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 0
optimizer.lr = 1e-3  # with Deformable DETR's groups: those of DINO and Focus-DETR were no better (projects/FocusDETR)
lr_multiplier.warmup_iters = 50
train.init_checkpoint = str(sample_folder() / WEIGHTS_FILE)
train.max_iter, train.eval_period, train.checkpointer.period = 600, 600, 300


def training(file):
    """Return the parts of a config besides its model: `dataloader, lr_multiplier, optimizer, train`.

    Args:
        file: `__file__` of the config; the output folder gets its name.
    """
    train.output_dir = output_dir_of(file)
    return dataloader, lr_multiplier, optimizer, train
