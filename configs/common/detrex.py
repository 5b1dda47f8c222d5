"""Training on COCO as in detrex: norms do not decay, images without boxes are left out, an epoch is 120,000 images."""

from .dino import dataloader, lr_multiplier, optimizer, train, training

optimizer.params.norm_weight_decay = 0.0
dataloader.train.dataset.filter_empty = True
train.eval_period = train.checkpointer.period = 7500
