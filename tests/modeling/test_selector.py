"""The selector and the scorers: scores, budgets and kept tokens."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.modeling.heads import PredictionHead, ProposalGenerator, ProposalProjection
from sparse_detr.modeling.selection import (
    BatchCascadedBudget,
    CascadedBudget,
    EvenBudget,
    KeepAllTokens,
    LearnedScorer,
    ObjectnessScorer,
    RandomScorer,
    ScoringNetwork,
    TokenScores,
    TopKSelector,
)
from sparse_detr.structures import AllTokens
from tests.modeling.tiny import make_pyramid, make_tokens

SHAPES = ((4, 5), (2, 3))
PADDED = (SHAPES, ((2, 3), (1, 2)))


class GivenScores(nn.Module):
    """A scorer that returns given scores."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, tokens, proposals):
        return TokenScores(self.values)


def select(values, *valid_shapes, budget=None, keep_ratio=None, **options):
    """Run a `TopKSelector` with the scores `values`; return the selection."""
    budget = budget or EvenBudget(keep_ratio=keep_ratio)
    selector = TopKSelector(scorer=GivenScores(values), budget=budget, **options)
    return selector(make_tokens(make_pyramid(SHAPES, *valid_shapes)), None)


def scored_parts(scorer):
    """Make tokens and proposals of a padded batch for a scorer."""
    pyramid = make_pyramid(SHAPES, *PADDED)
    torch.manual_seed(0)
    projection = ProposalProjection(embed_dim=32).double()
    return make_tokens(pyramid), ProposalGenerator()(pyramid, torch.float64, projection=projection)


def test_the_best_tokens_are_kept_in_order_of_their_scores():
    scores = torch.zeros(1, 26)
    scores[0, 7], scores[0, 20], scores[0, 3] = 3.0, 2.0, 1.0
    selected = select(scores, keep_ratio=0.1)
    assert selected.selection.indices.tolist() == [[7, 20, 3]]
    assert selected.selection.counts.tolist() == [3]


def test_every_image_has_a_budget_of_its_own():
    selected = select(torch.rand(2, 26), *PADDED, keep_ratio=0.5)
    assert selected.selection.counts.tolist() == [14, 5]
    assert selected.selection.indices.shape == (2, 14)
    assert selected.selection.keep.sum(1).tolist() == [14, 5]


def test_growing_ratios_keep_nested_sets():
    scores = torch.rand(2, 26, generator=torch.Generator().manual_seed(0))
    kept = [select(scores, *PADDED, keep_ratio=r).selection.keep for r in (0.05, 0.1, 0.3, 0.7, 1.0)]
    for smaller, larger in zip(kept[:-1], kept[1:], strict=True):
        assert not (smaller & ~larger).any()
        assert larger.sum() > smaller.sum()


@pytest.mark.parametrize("keep_ratio", [0.1, 0.6, 1.0])
def test_padding_is_never_kept_however_high_its_score(keep_ratio):
    pyramid = make_pyramid(SHAPES, *PADDED)
    scores = torch.where(pyramid.padding_mask, 100.0, torch.rand(2, 26))
    selected = select(scores, *PADDED, keep_ratio=keep_ratio)
    assert not (selected.selection.keep & pyramid.padding_mask).any()
    if keep_ratio == 1:
        assert torch.equal(selected.selection.keep, ~pyramid.padding_mask)


def test_released_padding_has_the_lowest_score_of_the_batch():
    pyramid = make_pyramid(SHAPES, *PADDED)
    scores = torch.rand(2, 26)
    scores[0, 11] = -7.0
    filled = select(scores, *PADDED, keep_ratio=0.3, padding="lowest").scores
    assert filled[pyramid.padding_mask].tolist() == [-7.0] * 18
    assert torch.equal(filled[~pyramid.padding_mask], scores[~pyramid.padding_mask])


def test_ranked_lowest_changes_the_ranking_of_padding_and_not_the_supervised_scores():
    pyramid = make_pyramid(SHAPES, *PADDED)
    scores = torch.rand(2, 26)
    selected = select(scores, *PADDED, keep_ratio=0.3, padding="ranked_lowest")
    assert torch.equal(selected.scores, scores)
    assert selected.ranking[pyramid.padding_mask].tolist() == [scores.min()] * 18


def test_padding_that_is_excluded_has_a_finite_score_to_supervise():
    pyramid, scores = make_pyramid(SHAPES, *PADDED), torch.rand(2, 26)
    selected = select(scores, *PADDED, keep_ratio=0.3)
    assert torch.equal(selected.scores, scores)
    assert torch.equal(selected.ranking.isneginf(), pyramid.padding_mask)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(CascadedBudget, [[14, 5], [8, 3], [3, 1]]), (BatchCascadedBudget, [[14, 5], [8, 5], [2, 2]])],
)
def test_a_cascade_keeps_prefixes_of_the_best_tokens(kind, expected):
    """There are 26 and 8 valid tokens, of which half are 14 and 5; later layers keep 3/5 and 1/5 of the half."""
    scores = torch.rand(2, 26, generator=torch.Generator().manual_seed(0))
    nested = select(scores, *PADDED, budget=kind(keep_ratio=0.5, schedule=(1.0, 0.6, 0.2))).selection
    flat = select(scores, *PADDED, keep_ratio=0.5).selection
    assert torch.equal(nested.indices, flat.indices)
    assert torch.equal(nested.keep, flat.keep)
    layers = [nested.at_layer(i) for i in range(3)]
    assert [layer.counts.tolist() for layer in layers] == expected
    for wide, narrow in zip(layers[:-1], layers[1:], strict=True):
        assert torch.equal(narrow.indices, wide.indices[:, : narrow.indices.shape[1]])
        assert not (narrow.keep & ~wide.keep).any()


@pytest.mark.parametrize("keep_ratio", [0, -0.1, 1.0001, math.nan, math.inf])
def test_ratios_outside_of_zero_to_one_are_refused(keep_ratio):
    with pytest.raises(ValueError, match="keep_ratio must be above 0 and at most 1, got"):
        EvenBudget(keep_ratio=keep_ratio)
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        CascadedBudget(keep_ratio=keep_ratio, schedule=(1.0, 0.5))
    budget = EvenBudget(keep_ratio=0.5)
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        TopKSelector(scorer=RandomScorer(), budget=budget, inference_keep_ratio=keep_ratio)
    selector = TopKSelector(scorer=GivenScores(torch.rand(1, 26)), budget=budget)
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        selector(make_tokens(make_pyramid(SHAPES)), None, keep_ratio)


def test_inference_may_keep_another_share_than_training():
    budget = EvenBudget(keep_ratio=0.5)
    selector = TopKSelector(scorer=GivenScores(torch.rand(1, 26)), budget=budget, inference_keep_ratio=0.1)
    tokens = make_tokens(make_pyramid(SHAPES))
    assert selector.train()(tokens, None).selection.counts.tolist() == [14]
    assert selector.eval()(tokens, None).selection.counts.tolist() == [3]
    assert selector.keep_ratio == 0.1
    assert selector.train().keep_ratio == 0.5


def test_the_budget_of_a_call_does_not_change_the_next_call():
    budget = CascadedBudget(keep_ratio=0.5, schedule=(1.0, 0.5))
    selector = TopKSelector(scorer=GivenScores(torch.rand(1, 26)), budget=budget)
    tokens = make_tokens(make_pyramid(SHAPES))
    for given, counts in ((1.0, [26, 14]), (1, [26, 14]), (None, [14, 7]), (EvenBudget(keep_ratio=0.1), [3, 3])):
        selection = selector(tokens, None, given).selection
        assert [selection.at_layer(layer).counts.item() for layer in (0, 1)] == counts
    assert selector.keep_ratio == 0.5


def test_the_dense_encoder_keeps_everything_and_refuses_another_ratio():
    selector, tokens = KeepAllTokens(), make_tokens(make_pyramid(SHAPES))
    selected = selector(tokens, None)
    assert isinstance(selected.selection, AllTokens)
    assert selected.scores is None
    for everything in (1, 1.0, EvenBudget(keep_ratio=1.0)):
        assert isinstance(selector(tokens, None, everything).selection, AllTokens)
    for share in (0.3, EvenBudget(keep_ratio=0.3)):
        with pytest.raises(ValueError, match=r"dense encoder; it cannot keep 0.3"):
            selector(tokens, None, share)


def test_the_scoring_network_joins_the_features_of_a_token_with_the_mean_over_valid_tokens():
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=32).double()
    tokens = make_tokens(make_pyramid(SHAPES, *PADDED))
    padding = tokens.pyramid.padding_mask
    scores = network(tokens.content, padding)
    for image in range(2):
        valid = tokens.content[image][~padding[image]]
        features = nn.functional.gelu(network.embed(network.norm(valid)))
        mean = features[:, 16:].mean(0)
        expected = [network.mlp(torch.cat([row[:16], mean])).item() for row in features]
        assert scores[image][~padding[image]].tolist() == pytest.approx(expected)


def test_the_released_scoring_network_takes_the_mean_over_padding_too():
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=32, mean_over="all").double()
    tokens = make_tokens(make_pyramid(SHAPES, *PADDED))
    none = torch.zeros_like(tokens.pyramid.padding_mask)
    scores = network(tokens.content, tokens.pyramid.padding_mask)
    assert torch.equal(scores, network(tokens.content, none))
    network.mean_over = "real"
    assert_close(scores, network(tokens.content, none))


def test_a_scoring_network_of_256_channels_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in ScoringNetwork(embed_dim=256).parameters()) == 107_521


def test_the_learned_scorer_reads_content_and_position():
    scorer = LearnedScorer(network=ScoringNetwork(embed_dim=32)).double()
    tokens, proposals = scored_parts(scorer)
    projected = proposals.project(tokens.content + tokens.position)
    expected = scorer.network(projected, tokens.pyramid.padding_mask)
    assert torch.equal(scorer(tokens, proposals).values, expected)


def test_random_scores_differ_in_every_run_in_training_and_at_inference():
    scorer, tokens = RandomScorer(), make_tokens(make_pyramid(SHAPES))
    for mode in (True, False):
        first, second = (scorer.train(mode)(tokens, None).values for _ in range(2))
        assert first.shape == (1, 26)
        assert not torch.equal(first, second)
        assert bool(((first >= 0) & (first < 1)).all())


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_the_objectness_score_is_a_class_logit_of_a_supervised_head(class_agnostic):
    torch.manual_seed(0)
    scorer = ObjectnessScorer(head=PredictionHead(embed_dim=32, num_classes=3), class_agnostic=class_agnostic).double()
    nn.init.normal_(scorer.head.class_embed.weight)
    scored = scorer(*scored_parts(scorer))
    logits = scored.predictions.logits
    assert torch.equal(scored.values, logits[..., 0] if class_agnostic else logits.max(-1).values)
    assert not scored.values.requires_grad
    assert scored.predictions.suffix == "_backbone"
    assert scored.predictions.class_agnostic == class_agnostic
    assert torch.equal(scored.predictions.valid, ~make_pyramid(SHAPES, *PADDED).padding_mask)
