"""Pictures of detections, tokens, scores and attention, as (H, W, 3) uint8 RGB arrays."""

from sparse_detr.visualization.detections import Detection, draw_detections, list_detections
from sparse_detr.visualization.token_maps import TokenMaps, token_maps
from sparse_detr.visualization.views import (
    attention_heat,
    heat_page,
    kept_tokens_page,
    overview_page,
    pooled_tokens_page,
    pooling_heat,
    sampled_points_page,
    score_heat,
)

__all__ = [
    "Detection",
    "TokenMaps",
    "attention_heat",
    "draw_detections",
    "heat_page",
    "kept_tokens_page",
    "list_detections",
    "overview_page",
    "sampled_points_page",
    "pooled_tokens_page",
    "pooling_heat",
    "score_heat",
    "token_maps",
]
