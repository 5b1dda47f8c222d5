"""DINO with Swin-L and five levels, 36 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, swin

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(
    backbone=swin("large", image_size=384, num_maps=4), position_temperature=10000, position_offset=-0.5, num_levels=5
)
train.max_iter, lr_multiplier.drop_at = 36 * EPOCH, [30 / 36]
train.init_checkpoint = "swin_large_384_imagenet22kto1k.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/dino_detrex_swin_l_384_5scale_36ep"
