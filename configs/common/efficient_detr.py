"""Settings for training on COCO as in Efficient DETR: 36 epochs in batches of 16."""

from .coco import dataloader, lr_multiplier, optimizer, train, training

optimizer.lr = 1e-4
train.max_iter, lr_multiplier.drop_at = 36 * train.eval_period, [24 / 36]
