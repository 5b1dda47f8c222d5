"""Learning-rate schedules, relative to the length of the training."""

from detectron2.config import LazyCall as L

from sparse_detr.solver import cosine_schedule, step_schedule

# The learning rate falls to a tenth after 80 % of the iterations: after epoch 40 of 50.
step = L(step_schedule)(max_iter="${train.max_iter}", drop_at=[0.8], gamma=0.1, warmup_iters=0)
cosine = L(cosine_schedule)(max_iter="${train.max_iter}", end_factor=0.0, warmup_iters=0)
