"""Settings for training on COCO as in the code of DETR and Conditional DETR: AdamW 1e-4 (backbone 1e-5).

There are 8 GPUs, each with two images, or with one image for a dilated backbone.
"""

from .dino import training as in_batches_of_16


def training(file, backbone, *, epochs, drop):
    """Return the parts of a config besides its model: `dataloader, lr_multiplier, optimizer, train`.

    Args:
        file, backbone: see `configs/common/coco.py`. A backbone of stride 16 has batches of 8.
        epochs: length of the training.
        drop: number of epochs after which the learning rate falls to a tenth.
    """
    dataloader, lr_multiplier, optimizer, train = in_batches_of_16(file, backbone, epochs=epochs, drop=drop)
    if backbone.strides[-1] == 16:
        dataloader.train.total_batch_size = 8
        train.eval_period = train.checkpointer.period = 14786
        train.max_iter = epochs * train.eval_period
    return dataloader, lr_multiplier, optimizer, train
