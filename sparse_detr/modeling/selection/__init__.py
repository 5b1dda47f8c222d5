"""Which tokens the encoder refines: scorers, the selector, and how the scores learn."""

from sparse_detr.modeling.selection.attention_map import DecoderAttentionMap
from sparse_detr.modeling.selection.budgets import layer_shares
from sparse_detr.modeling.selection.foreground import ForegroundLabels, ForegroundSupervision
from sparse_detr.modeling.selection.scorers import LearnedScorer, ObjectnessScorer, RandomScorer, ScoringNetwork
from sparse_detr.modeling.selection.selector import KeepAllTokens, Selected, TopKSelector
from sparse_detr.modeling.selection.supervision import AttentionMapSupervision, NoSupervision
from sparse_detr.modeling.selection.top_down import TopDownScorer

__all__ = [
    "AttentionMapSupervision",
    "DecoderAttentionMap",
    "ForegroundLabels",
    "ForegroundSupervision",
    "KeepAllTokens",
    "LearnedScorer",
    "NoSupervision",
    "ObjectnessScorer",
    "RandomScorer",
    "ScoringNetwork",
    "Selected",
    "TopDownScorer",
    "TopKSelector",
    "layer_shares",
]
