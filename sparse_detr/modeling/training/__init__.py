"""Parts that only training needs: matching, losses, denoising and the supervision of token scores."""

from sparse_detr.modeling.training.auxiliary_proposals import AuxiliaryProposals, NoAuxiliaryProposals
from sparse_detr.modeling.training.criterion import SetCriterion
from sparse_detr.modeling.training.denoising import ContrastiveDenoising, NoDenoising
from sparse_detr.modeling.training.distillation import Distillation
from sparse_detr.modeling.training.foreground import ForegroundLabels, ForegroundSupervision
from sparse_detr.modeling.training.matching import HungarianMatcher
from sparse_detr.modeling.training.token_supervision import AttentionMapSupervision, NoSupervision, PolledScorePenalty

__all__ = [
    "AttentionMapSupervision",
    "AuxiliaryProposals",
    "ContrastiveDenoising",
    "Distillation",
    "ForegroundLabels",
    "ForegroundSupervision",
    "HungarianMatcher",
    "NoAuxiliaryProposals",
    "NoDenoising",
    "NoSupervision",
    "PolledScorePenalty",
    "SetCriterion",
]
