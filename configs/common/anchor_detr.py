"""Settings for training on COCO as in the code of Anchor DETR: AdamW 1e-4 (backbone 1e-5), batches of 8."""

from .dino import dataloader, lr_multiplier, optimizer, train, training

dataloader.train.total_batch_size = 8
train.max_iter, train.eval_period, train.checkpointer.period = 739300, 14786, 14786
