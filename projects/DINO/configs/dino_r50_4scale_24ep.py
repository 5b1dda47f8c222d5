"""DINO with ResNet-50 and four levels, 24 epochs: the official settings."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(50), shared_heads=True)
train.max_iter, lr_multiplier.drop_at = 24 * EPOCH, [20 / 24]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/dino_r50_4scale_24ep"
