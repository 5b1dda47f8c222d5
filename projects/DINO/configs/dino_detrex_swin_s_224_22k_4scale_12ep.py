"""DINO with Swin-S from ImageNet-22k, 12 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, swin

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=swin("small"), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "swin_small_imagenet22kto1k.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/dino_detrex_swin_s_224_22k_4scale_12ep"
