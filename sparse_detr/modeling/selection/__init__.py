"""Which tokens the encoder refines: scorers, budgets and the selector."""

from sparse_detr.modeling.selection.budgets import (
    BatchCascadedBudget,
    CascadedBudget,
    RandomBudget,
    RoundedDownBudget,
    layer_shares,
)
from sparse_detr.modeling.selection.elastic import ElasticBudget
from sparse_detr.modeling.selection.levels import LevelSelector
from sparse_detr.modeling.selection.per_image import PerImageBudget
from sparse_detr.modeling.selection.poll_and_pool import PollAndPool, TokenPool
from sparse_detr.modeling.selection.scorers import MLPScorer, ObjectnessScorer, RandomScorer
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
from sparse_detr.modeling.selection.steering import LevelBudget, MassBudget, parse_budget
from sparse_detr.modeling.selection.top_down import TopDownScorer

__all__ = [
    "BatchCascadedBudget",
    "Budget",
    "CascadedBudget",
    "ElasticBudget",
    "EvenBudget",
    "KeepAllTokens",
    "LearnedScorer",
    "LevelBudget",
    "LevelSelector",
    "MLPScorer",
    "MassBudget",
    "ObjectnessScorer",
    "PerImageBudget",
    "PollAndPool",
    "RandomBudget",
    "RandomScorer",
    "RoundedDownBudget",
    "ScoringNetwork",
    "Selected",
    "TokenPool",
    "TokenScores",
    "TopDownScorer",
    "TopKSelector",
    "layer_shares",
    "parse_budget",
]
