"""Focus-DETR with Swin-B, 36 epochs."""

from sparse_detr.recipes import focus_detr, swin

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = focus_detr(backbone=swin("base", image_size=384), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 36 * EPOCH, [30 / 36]
train.init_checkpoint = "swin_base_384_imagenet22k.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/focus_detr_swin_b_384_36ep"
