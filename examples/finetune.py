"""Fine-tune a converted COCO checkpoint on own data, under Detectron2's own `lazyconfig_train_net.py`.

    sparse-detr convert sparse_detr_r50_10.pth weights.pth                      # a public checkpoint
    python detectron2/tools/lazyconfig_train_net.py --config-file examples/finetune.py \
        train.init_checkpoint=weights.pth train.max_iter=3000

It is a config like those of `projects/`: it says what differs from one of them. Detectron2's script trains it without
this project's trainer, so `--resume` is Detectron2's. Our `train_net.py` takes the same file, and resumes bit for bit.
"""

import os

from sparse_detr.data.register import register_coco_files
from sparse_detr.model_zoo import get_config

DATA = os.environ.get("MY_DATA", "my_data")
CLASSES = ["cat", "dog"]
for split in ("train", "val"):
    register_coco_files(
        name=f"my_{split}", annotations=f"{DATA}/{split}.json", images=f"{DATA}/{split}", class_names=CLASSES
    )

_base = get_config("SparseDETR/sparse_detr_r50_rho30.py")
model, optimizer, lr_multiplier = _base.model, _base.optimizer, _base.lr_multiplier
dataloader, train = _base.dataloader, _base.train
model.num_classes = len(CLASSES)
dataloader.train.dataset.names, dataloader.test.dataset.names = "my_train", "my_val"
optimizer.lr = 1e-4
train.output_dir = "output/finetune"
