"""A made-up output of a detector, on two levels with padding."""

from dataclasses import replace

import pytest
import torch

from sparse_detr.structures import AllTokens, DetectorOutput, PolledTokens, PredictionGroup, Pyramid, TopKTokens

# Level 0: 4 x 6 cells, of which 3 x 4 are valid; level 1: 2 x 3, of which 2 x 2 are valid.
SHAPES, VALID_SHAPES = ((4, 6), (2, 3)), ((3, 4), (2, 2))
NUM_TOKENS = 4 * 6 + 2 * 3


@pytest.fixture
def sparse_output() -> DetectorOutput:
    """Make an output: the score of a token is its index, its attention 1; tokens 1 and 25 are kept."""
    return make_output(kept=[25, 1])


@pytest.fixture
def dense_output() -> DetectorOutput:
    return make_output(kept=None)


@pytest.fixture
def pooled_output(sparse_output) -> DetectorOutput:
    """Make an output with two pooled tokens: one is token 7 alone, the other is the mean of tokens 0 and 24."""
    pooling = torch.zeros(1, 2, NUM_TOKENS)
    pooling[0, 0, 7], pooling[0, 1, 0], pooling[0, 1, 24] = 1.0, 0.5, 0.5
    return replace(sparse_output, selection=PolledTokens.polled(sparse_output.selection, pooling))


def make_output(*, kept: list[int] | None) -> DetectorOutput:
    pyramid = Pyramid.of(SHAPES, (VALID_SHAPES,), device=torch.device("cpu"))
    group = PredictionGroup(name="decoder_0", suffix="", logits=torch.zeros(1, 1, 1), boxes=torch.zeros(1, 1, 4))
    if kept is None:
        selection = AllTokens(pyramid)
    else:
        selection = TopKTokens.of(torch.tensor([kept]), torch.tensor([len(kept)]), num_tokens=pyramid.num_tokens)
    return DetectorOutput(
        groups=(group,),
        predictions=group,
        pyramid=pyramid,
        selection=selection,
        token_scores=None if kept is None else torch.arange(float(NUM_TOKENS))[None],
        attention_map=torch.where(pyramid.padding_mask, 0.0, 1.0),
        image_sizes=((24, 32),),
    )
