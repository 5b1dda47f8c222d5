"""Settings for training on COCO as in detrex: no weight decay of norms, images with boxes only, epochs of 120,000."""

from .dino import dataloader, lr_multiplier, optimizer, train, training

optimizer.params.norm_weight_decay = 0.0
dataloader.train.dataset.filter_empty = True
train.eval_period = train.checkpointer.period = 7500
