"""Fine-tune a COCO-trained Sparse DETR on a small data set of one's own: few epochs, low learning rate, small batch.

Start from a converted checkpoint, train.init_checkpoint=FILE; class rows of another number of classes start afresh.
"""

from sparse_detr.recipes import resnet, sparse_detr

from ....configs.common.coco import training
from ....configs.common.schedule import cosine as lr_multiplier

backbone = resnet(50)
model = sparse_detr(backbone=backbone, keep_ratio=0.3, dropout=0.0)
dataloader, _, optimizer, train = training(__file__, backbone)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 2
optimizer.lr = 1e-4
lr_multiplier.warmup_iters = 100
train.max_iter, train.eval_period, train.checkpointer.period = 5000, 500, 500
train.init_checkpoint = ""
