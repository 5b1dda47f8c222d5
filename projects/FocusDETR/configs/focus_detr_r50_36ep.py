"""Focus-DETR with ResNet-50, 36 epochs."""

from sparse_detr.recipes import focus_detr, resnet

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = focus_detr(backbone=resnet(50, freeze_at=1))
train.max_iter, lr_multiplier.drop_at = 36 * EPOCH, [20 / 36]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/focus_detr_r50_36ep"
