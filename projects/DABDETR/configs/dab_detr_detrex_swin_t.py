"""DAB-DETR with Swin-T: the settings of detrex."""

from sparse_detr.recipes import dab_detr, swin

from ....configs.common.detrex import training

backbone = swin("tiny", num_maps=1)
model = dab_detr(backbone=backbone, anchor_start="uniform_centers")
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
