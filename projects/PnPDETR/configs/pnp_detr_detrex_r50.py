"""PnP-DETR with ResNet-50: the settings of detrex, which polls half of the tokens in training too."""

from sparse_detr.recipes import pnp_detr, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1, num_maps=1)
model = pnp_detr(backbone=backbone, keep_ratio=0.5, training_keep_ratios=(0.5, 0.5))
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
dataloader.train.total_batch_size, train.clip_grad_norm = 64, None
train.max_iter, lr_multiplier.drop_at = 554_400, [2 / 3]
