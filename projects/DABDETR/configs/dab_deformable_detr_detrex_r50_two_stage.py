"""Two-stage DAB-Deformable-DETR with ResNet-50: the settings of detrex."""

from sparse_detr.recipes import dab_deformable_detr, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dab_deformable_detr(backbone=resnet(50, freeze_at=1), two_stage=True)
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/dab_deformable_detr_detrex_r50_two_stage"
