"""DAB-DETR with dilated ResNet-50: the official settings."""

from sparse_detr.recipes import dab_detr, resnet

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dab_detr(backbone=resnet(50, num_maps=1, dilation=True))
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/dab_detr_r50_dc5"
