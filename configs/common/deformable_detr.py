"""Settings for training on COCO as in the code of Deformable DETR: 50 epochs in batches of 32."""

from .coco import dataloader, lr_multiplier, optimizer, train, training

dataloader.train.total_batch_size = 32
train.max_iter, train.eval_period, train.checkpointer.period = 184825, 3697, 3697
