"""DAB-DETR whose encoder alone is deformable: the decoder attends to every token of four levels."""

from sparse_detr.recipes import dab_deformable_detr, dab_detr, resnet

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model, dense = dab_deformable_detr(backbone=resnet(50)), dab_detr(backbone=resnet(50, num_maps=1))
model.queries, model.decoder, model.heads = dense.queries, dense.decoder, dense.heads
model.attention_map = dense.attention_map
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/dab_deformable_encoder_r50"
