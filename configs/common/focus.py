"""Settings for training on COCO as in the code of Focus-DETR: detrex's, but images are resized and not cropped."""

from .detrex import dataloader, lr_multiplier, optimizer, train, training

dataloader.train.mapper.augmentations.crop_range = None
