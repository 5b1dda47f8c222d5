"""Focus-DETR with ResNet-101, 24 epochs."""

from sparse_detr.recipes import focus_detr, resnet

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = focus_detr(backbone=resnet(101, freeze_at=1))
train.max_iter, lr_multiplier.drop_at = 24 * EPOCH, [20 / 24]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "output/focus_detr_r101_24ep"
