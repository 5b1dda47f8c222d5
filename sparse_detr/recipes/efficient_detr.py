"""Efficient DETR (Yao et al., arXiv 2104.01318, 2021)."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.modeling.detector import TrainingIteration
from sparse_detr.modeling.queries import FallingNumber
from sparse_detr.recipes.deformable_detr import deformable_detr

TRAINING_LENGTH = "${oc.select:train.max_iter,null}"
"""`train.max_iter` of the lazy config that holds the model; None for a model in no such config."""


def efficient_detr(
    *,
    encoder_layers: int = 3,
    decoder_layers: int = 1,
    num_queries: int = 100,
    first_num_queries: int = 300,
    falling_steps: int | str | None = TRAINING_LENGTH,
    share_heads: bool = True,
    detach_content: bool = True,
    **options: Any,
) -> Any:
    """Return the LazyCall of Efficient DETR: the best proposals of a dense head start a decoder of one layer.

    It is not `deformable_detr_topk`, the baseline of Sparse DETR, which the public code of Sparse DETR calls Efficient
    DETR: that has six layers of each kind, a head for each, and the same number of queries all the time.

    Args:
        num_queries: at inference, and at the end of training.
        first_num_queries: at the start of training; `num_queries` for no fall.
        falling_steps: iterations in which the number falls; by default the length of the training, which for yaml is
            `SOLVER.MAX_ITER`. None for no fall, which is also the default of a model outside of a config.
        share_heads: one head for the proposals and the decoder.
        detach_content: pass no gradient from the queries' content to the encoder.
        options: of `deformable_detr`, except `two_stage` and `box_refinement`.
    """
    model = deformable_detr(
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        num_queries=num_queries,
        two_stage="memory",
        box_refinement=True,
        **options,
    )
    model.heads.tied = model.heads.proposals_tied = share_heads
    model.queries.start.detach_content = detach_content
    model.queries.training_number = L(FallingNumber)(
        first_number=first_num_queries,
        last_number="${..num_queries}",
        falling_steps=falling_steps,
        iteration=L(TrainingIteration)(),
    )
    return model
