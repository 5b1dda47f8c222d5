"""DAB-DETR with ResNet-101: the settings of detrex."""

from sparse_detr.recipes import dab_detr, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dab_detr(backbone=resnet(101, freeze_at=1, num_maps=1), anchor_start="uniform_centers")
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "output/dab_detr_detrex_r101"
