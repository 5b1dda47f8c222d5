"""DAB-DETR with Swin-T: the settings of detrex."""

from sparse_detr.recipes import dab_detr, swin

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dab_detr(backbone=swin("tiny", num_maps=1), anchor_start="uniform_centers")
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "swin_tiny_imagenet.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/dab_detr_detrex_swin_t"
