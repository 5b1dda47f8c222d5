"""Focus-DETR with Swin-T from ImageNet-22k, 12 epochs."""

from sparse_detr.recipes import focus_detr, swin

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = focus_detr(backbone=swin("tiny"), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "swin_tiny_imagenet22kto1k.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/focus_detr_swin_t_224_22k_12ep"
