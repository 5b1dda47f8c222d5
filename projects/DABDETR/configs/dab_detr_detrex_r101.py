"""DAB-DETR with ResNet-101: the settings of detrex."""

from sparse_detr.recipes import dab_detr, resnet

from ....configs.common.detrex import training

backbone = resnet(101, freeze_at=1, num_maps=1)
model = dab_detr(backbone=backbone, anchor_start="uniform_centers")
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
