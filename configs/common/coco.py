"""Training on COCO as in Deformable DETR and Sparse DETR: 50 epochs in batches of 16."""

from .data import dataloader
from .optim import optimizer
from .schedule import step as lr_multiplier
from .train import train
