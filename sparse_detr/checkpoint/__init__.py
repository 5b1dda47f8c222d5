"""Converting, checking and loading checkpoints."""

from sparse_detr.checkpoint.classes import COCO_IDS
from sparse_detr.checkpoint.convert import ConvertedCheckpoint, convert_checkpoint
from sparse_detr.checkpoint.load import load_file
from sparse_detr.checkpoint.report import MatchReport, load_for_finetuning, match_report

__all__ = [
    "COCO_IDS",
    "ConvertedCheckpoint",
    "MatchReport",
    "convert_checkpoint",
    "load_file",
    "load_for_finetuning",
    "match_report",
]
