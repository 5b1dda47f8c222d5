"""Settings for training on COCO as in Deformable DETR and Sparse DETR: 50 epochs in batches of 16."""

from sparse_detr.config.derived import output_dir_of

from .data import dataloader
from .optim import optimizer
from .schedule import step as lr_multiplier
from .train import train


def training(file, backbone, *, epochs=None, drop=None):
    """Return the parts of a config besides its model: `dataloader, lr_multiplier, optimizer, train`.

    Args:
        file: `__file__` of the config; the output folder gets its name.
        backbone: of `sparse_detr.recipes`; the training starts from its ImageNet weights.
        epochs: length of the training; None for the length in this module. An epoch is `train.eval_period` iterations.
        drop: number of epochs after which the learning rate falls to a tenth.
    """
    train.output_dir, train.init_checkpoint = output_dir_of(file), backbone.weights
    if epochs is not None:
        train.max_iter, lr_multiplier.drop_at = epochs * train.eval_period, [drop / epochs]
    return dataloader, lr_multiplier, optimizer, train
