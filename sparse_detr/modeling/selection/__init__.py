"""Which tokens the encoder refines: scorers, budgets and the selector."""

from sparse_detr.modeling.selection.budgets import BatchCascadedBudget, CascadedBudget, layer_shares
from sparse_detr.modeling.selection.levels import LevelSelector
from sparse_detr.modeling.selection.scorers import ObjectnessScorer, RandomScorer
from sparse_detr.modeling.selection.selector import (
    Budget,
    EvenBudget,
    KeepAllTokens,
    LearnedScorer,
    ScoringNetwork,
    Selected,
    TokenScores,
    TopKSelector,
)
from sparse_detr.modeling.selection.top_down import TopDownScorer

__all__ = [
    "BatchCascadedBudget",
    "Budget",
    "CascadedBudget",
    "EvenBudget",
    "KeepAllTokens",
    "LearnedScorer",
    "LevelSelector",
    "ObjectnessScorer",
    "RandomScorer",
    "ScoringNetwork",
    "Selected",
    "TokenScores",
    "TopDownScorer",
    "TopKSelector",
    "layer_shares",
]
