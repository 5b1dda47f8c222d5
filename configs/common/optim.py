"""AdamW as in Deformable DETR and Sparse DETR."""

import torch
from detectron2.config import LazyCall as L

from sparse_detr.solver import detr_parameter_groups

optimizer = L(torch.optim.AdamW)(
    params=L(detr_parameter_groups)(
        # the training function sets params.model, as Detectron2's tools do
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        backbone_multiplier=0.1,
        sampling_multiplier=0.1,
        total_batch_size="${dataloader.train.total_batch_size}",
        accumulate="${train.accumulate}",
        batch_size_scaling="none",  # or "sqrt", "linear": relative to 16 images an iteration
    ),
    lr=2e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
)
