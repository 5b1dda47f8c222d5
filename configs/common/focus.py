"""Training on COCO as Focus-DETR's authors do: as in detrex, but resized only, not cropped."""

from .detrex import dataloader, lr_multiplier, optimizer, train, training

dataloader.train.mapper.augmentations.crop_range = None
