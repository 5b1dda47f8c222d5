"""DINO with ResNet-50, 12 epochs, with the optimiser of Deformable DETR: detrex's "hacked trainer"."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1)
model = dino(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
optimizer.lr, optimizer.params.sampling_multiplier, optimizer.params.norm_weight_decay = 2e-4, 0.1, None
