"""DINO with Swin-L and four levels, 12 epochs: the official settings."""

from sparse_detr.recipes import dino, swin

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=swin("large", image_size=384), shared_heads=True)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "swin_large_384_imagenet22k.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/dino_swin_l_384_4scale_12ep"
