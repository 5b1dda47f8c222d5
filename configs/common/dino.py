"""Training on COCO as the official code of DINO and DAB-DETR: AdamW 1e-4, the backbone alone slower, batches of 16."""

from .coco import dataloader, lr_multiplier, optimizer, train, training

optimizer.lr, optimizer.params.sampling_multiplier = 1e-4, 1.0
