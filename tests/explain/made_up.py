"""Runs of a model that is made up: its one detection depends on some tokens in a known way."""

from types import SimpleNamespace

import torch

from sparse_detr.explain import Intervention, Prediction, Target
from tests.modeling.tiny import make_pyramid

SHAPES = ((4, 4), (2, 2))
BOX = torch.tensor([0.0, 0.0, 20.0, 20.0])
TARGET = Target(BOX, label=0, score=0.8, query=0)


class MadeUpRuns:
    """An image of 40 x 40 pixels with 16 fine and 4 coarse tokens, all refined.

    `score_of` turns an intervention into the score of the detection, whose box is the upper left quarter: under it lie
    the fine tokens 0, 1, 4, 5 and the coarse token 16.
    """

    size = (40, 40)

    def __init__(self, score_of):
        self.score_of = score_of
        self.pyramid = make_pyramid(SHAPES)
        self.kept = (torch.ones(20, dtype=torch.bool),)
        # The higher the index, the lower the score.
        self.output = SimpleNamespace(token_scores=-torch.arange(20.0)[None], attention_map=None)
        self.edits = []

    def run(self, edits, *, samples=False):
        self.edits += edits
        return [prediction_of(self.score_of(edit)) for edit in edits]


def prediction_of(score):
    return Prediction(scores=torch.tensor([[score, 0.0]]), boxes=BOX[None], kept=())


def dropped(edit: Intervention) -> set[int]:
    return set() if edit.drop is None else set(edit.drop.nonzero()[:, 0].tolist())
