# ruff: noqa: C408 - dict(key=value) reads like the LazyCalls around it
"""Settings of a training: those of Detectron2's tools and those that this project adds."""

import torch

train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=369650,  # 50 epochs of COCO in batches of 16
    amp=dict(enabled=False, dtype="bf16"),  # or "fp16"
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=7393, max_to_keep=10),
    eval_period=7393,
    log_period=20,
    vis_period=0,  # iterations between two pictures of a validation image for TensorBoard; 0: none
    device="cuda" if torch.cuda.is_available() else "cpu",
    seed=42,
    # Settings that Detectron2's lazyconfig_train_net ignores:
    clip_grad_norm=0.1,  # norm of the gradient of the whole model; None: no clipping
    batch=None,  # "auto": the largest batch that fits, in place of dataloader.train.total_batch_size
    accumulate=1,  # batches an optimiser step
    fast_backbone=True,  # channels last in memory, frozen norms in the convolutions; numbers differ by rounding
    checkpoint_activations=[],  # "backbone", "encoder", "decoder": less memory, about a third more time
    freeze=[],  # names of parts that do not learn, such as "backbone" or "encoder.layers.*.ffn"
    ema=dict(enabled=False, decay=0.9997),
    best_metric="bbox/AP",  # chooses model_best.pth
    report=True,  # write a report into the output folder after the last evaluation
    validation_loss=False,  # True, or a number of batches: evaluations give the losses too
    # Evaluations without an improvement before the training ends; 0: never. metric None: best_metric.
    early_stopping=dict(patience=0, metric=None, min_improvement=0.0),
    writers=[],  # "wandb", "mlflow": services that get losses and scores too
    max_time=None,  # "2h30m": the training ends after so much time
)
