"""Read, convert, check and load checkpoints."""

from sparse_detr.checkpoint.coco_classes import COCO_IDS
from sparse_detr.checkpoint.convert import ConvertedCheckpoint, convert_checkpoint
from sparse_detr.checkpoint.match import MatchReport, load_for_finetuning, match_report
from sparse_detr.checkpoint.read import load_file

__all__ = [
    "COCO_IDS",
    "ConvertedCheckpoint",
    "MatchReport",
    "convert_checkpoint",
    "load_file",
    "load_for_finetuning",
    "match_report",
]
