"""DAB-DETR whose encoder alone is deformable: the decoder attends to every token of four levels."""

from sparse_detr.recipes import dab_deformable_detr, dab_detr, resnet

from ....configs.common.dino import training

backbone = resnet(50)
model, _full = dab_deformable_detr(backbone=backbone), dab_detr(backbone=resnet(50, num_maps=1))
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
model.queries, model.decoder, model.heads = _full.queries, _full.decoder, _full.heads
model.attention_map = _full.attention_map
