"""DINO with ResNet-50 and five levels, 12 epochs: the official settings."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(50, num_maps=4), shared_heads=True, num_levels=5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/dino_r50_5scale_12ep"
