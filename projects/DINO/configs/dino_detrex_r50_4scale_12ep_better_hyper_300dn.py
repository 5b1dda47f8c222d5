"""As `dino_detrex_r50_4scale_12ep_better_hyper`, with 300 denoising queries."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(50, freeze_at=0), position_temperature=10000, position_offset=-0.5, denoising_queries=300)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
model.criterion.class_weight, model.criterion.denoising_class_weight = 2.0, 1.0
optimizer.lr, optimizer.params.sampling_multiplier, optimizer.params.norm_weight_decay = 2e-4, 0.1, None
train.output_dir = "output/dino_detrex_r50_4scale_12ep_better_hyper_300dn"
