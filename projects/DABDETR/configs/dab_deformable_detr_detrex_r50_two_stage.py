"""Two-stage DAB-Deformable-DETR with ResNet-50: the settings of detrex."""

from sparse_detr.recipes import dab_deformable_detr, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1)
model = dab_deformable_detr(backbone=backbone, two_stage=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
