"""DINO with ResNet-50, 12 epochs, nothing frozen, class loss doubled: detrex's "hacked trainer"."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=0)
model = dino(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
model.criterion.class_weight, model.criterion.denoising_class_weight = 2.0, 1.0
optimizer.lr, optimizer.params.sampling_multiplier, optimizer.params.norm_weight_decay = 2e-4, 0.1, None
