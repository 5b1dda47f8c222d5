"""Which tokens the encoder refines: scorers, budgets and the selector."""

from sparse_detr.modeling.selection.budgets import (
    BatchCascadedBudget,
    Budget,
    CascadedBudget,
    EvenBudget,
    RandomBudget,
    RoundedDownBudget,
    layer_shares,
)
from sparse_detr.modeling.selection.elastic import ElasticBudget, deal
from sparse_detr.modeling.selection.levels import LevelSelector
from sparse_detr.modeling.selection.poll_and_pool import PollAndPool, TokenPool
from sparse_detr.modeling.selection.scorers import MLPScorer, ObjectnessScorer, RandomScorer
from sparse_detr.modeling.selection.selector import (
    KeepAllTokens,
    LearnedScorer,
    ScoringNetwork,
    Selected,
    TokenScores,
    TopKSelector,
)
from sparse_detr.modeling.selection.steering import (
    AnyBudget,
    LevelBudget,
    MassBudget,
    MixedBudget,
    UnknownBudgetError,
    budget_of_call,
    parse_budget,
)
from sparse_detr.modeling.selection.top_down import TopDownScorer

__all__ = [
    "AnyBudget",
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
    "MixedBudget",
    "ObjectnessScorer",
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
    "budget_of_call",
    "deal",
    "layer_shares",
    "UnknownBudgetError",
    "parse_budget",
]
