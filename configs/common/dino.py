"""Settings for training on COCO as in the code of DINO and DAB-DETR: AdamW 1e-4 (backbone 1e-5), batches of 16."""

from .coco import dataloader, lr_multiplier, optimizer, train, training

optimizer.lr, optimizer.params.sampling_multiplier = 1e-4, 1.0
