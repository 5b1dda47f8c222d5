"""Focus-DETR with ResNet-101, 12 epochs."""

from sparse_detr.recipes import focus_detr, resnet

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = focus_detr(backbone=resnet(101, freeze_at=1), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "output/focus_detr_r101_12ep"
