"""Top-down scores, from coarse to fine."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_detr.modeling.heads import ProposalGenerator, ProposalProjection
from sparse_detr.modeling.selection import ScoringNetwork, TopDownScorer
from sparse_detr.modeling.selection.top_down import interpolate_valid
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((7, 10), (4, 5), (2, 3))
PADDED = (SHAPES, ((3, 7), (2, 4), (1, 2)))


def make_scorer(modulation, num_levels=3):
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=32, mean_over="all" if modulation == "released" else "real")
    scorer = TopDownScorer(network=network, num_levels=num_levels, modulation=modulation).double()
    shake(scorer)
    with torch.no_grad():
        scorer.alpha.copy_(torch.tensor([0.3, -0.2, 0.1])[: num_levels - 1])
    return scorer


def parts(pyramid):
    """Make tokens and proposals."""
    torch.manual_seed(0)
    projection = ProposalProjection(embed_dim=32).double()
    return make_tokens(pyramid), ProposalGenerator()(pyramid, torch.float64, projection=projection)


def change_of_scores(scorer, pyramid):
    """Return by level the largest change of a score if the modulation is switched off."""
    inputs = parts(pyramid)
    modulated = scorer(*inputs).values
    with torch.no_grad():
        scorer.alpha.zero_()
    change = (modulated - scorer(*inputs).values).abs()
    return [level.max().item() for level in pyramid.split(change)]


def test_values_between_token_centres_are_interpolated_linearly():
    """Two cells 0 and 4 with centres at 1/4 and 3/4; four at 1/8, 3/8, ..."""
    pyramid = make_pyramid(((1, 4), (1, 2)))
    fine = interpolate_valid(torch.tensor([[0.0, 4.0]]), pyramid, 1, 0)
    assert fine.tolist() == [[0.0, 1.0, 3.0, 4.0]]


def test_interpolation_reads_no_padding_and_works_in_the_unpadded_image():
    """The second image is two cells wide on both levels; the padding is noise."""
    pyramid = make_pyramid(((1, 4), (1, 3)), ((1, 4), (1, 3)), ((1, 2), (1, 2)))
    values = torch.tensor([[0.0, 3.0, 6.0], [5.0, 7.0, 1e30]])
    fine = interpolate_valid(values, pyramid, 1, 0)
    assert_close(fine[0], torch.tensor([0.0, 1.875, 4.125, 6.0]))
    assert fine[1].tolist() == [5.0, 7.0, 7.0, 7.0]


def test_without_padding_interpolation_is_that_of_pytorch():
    pyramid, values = make_pyramid(((7, 10), (4, 3))), torch.randn(2, 12, dtype=torch.float64)
    expected = F.interpolate(values.view(2, 1, 4, 3), (7, 10), mode="bilinear", align_corners=False)
    pyramid = make_pyramid(pyramid.spatial_shapes, *[pyramid.spatial_shapes] * 2)
    assert_close(interpolate_valid(values, pyramid, 1, 0), expected.flatten(1))


def test_normalised_features_grow_under_foreground_and_shrink_under_background():
    """Token by token, in the unpadded part of the second image."""
    scorer, pyramid = make_scorer("exact"), make_pyramid(SHAPES, *PADDED)
    tokens, proposals = parts(pyramid)
    projected = proposals.project(tokens.content + tokens.position)
    valid, network = ~pyramid.padding_mask[1], scorer.network
    masks = pyramid.split(valid[None])
    levels = [x[1][mask[0]] for x, mask in zip(pyramid.split(projected), masks, strict=True)]
    gain, expected = torch.ones(2, 1), []
    for level, (height, width) in reversed(list(enumerate(PADDED[1]))):
        features = F.gelu(network.embed(network.norm(levels[level]) * gain))
        mean = features[:, 16:].mean(0).expand(height * width, -1)
        expected.insert(0, network.mlp(torch.cat([features[:, :16], mean], 1)).squeeze(1))
        if level:
            probability = expected[0].sigmoid().view(1, 1, height, width)
            coarse = F.interpolate(probability, PADDED[1][level - 1], mode="bilinear", align_corners=False)
            gain = 1 + scorer.alpha[2 - level] * (2 * coarse.reshape(-1, 1) - 1)
    assert_close(scorer(tokens, proposals).values[1][valid], torch.cat(expected))


def test_released_scores_modulate_the_network_s_input_by_raw_logits_of_padded_maps():
    scorer, pyramid = make_scorer("released"), make_pyramid(SHAPES, *PADDED)
    tokens, proposals = parts(pyramid)
    fine, middle, coarse = pyramid.split(proposals.project(tokens.content + tokens.position))
    none = [torch.zeros(x.shape[:2], dtype=torch.bool) for x in (fine, middle, coarse)]
    scores = [scorer.network(coarse, none[2])]
    for x, alpha, mask, shapes in ((middle, 0.3, none[1], SHAPES[1:]), (fine, -0.2, none[0], SHAPES[:2])):
        up = F.interpolate(scores[0].view(2, 1, *shapes[1]), shapes[0], mode="bilinear", align_corners=True)
        scores.insert(0, scorer.network(x * (1 + alpha * up.flatten(1)[..., None]), mask))
    assert_close(scorer(tokens, proposals).values, torch.cat(scores, 1))


def test_features_of_a_coarse_level_change_the_scores_of_finer_levels():
    finest, middle, coarsest = change_of_scores(make_scorer("exact"), make_pyramid(SHAPES))
    assert finest > 1e-3
    assert middle > 1e-3
    assert coarsest == 0


def test_the_released_modulation_changes_nothing_unless_it_flips_a_sign():
    """The layer normalisation that follows removes a positive factor, except for its epsilon."""
    scorer = make_scorer("released")
    assert max(change_of_scores(scorer, make_pyramid(SHAPES))) < 1e-4
    with torch.no_grad():
        scorer.alpha.fill_(-100.0)
    assert max(change_of_scores(scorer, make_pyramid(SHAPES))) > 1e-2


@pytest.mark.parametrize(("modulation", "low", "high"), [("exact", 1e-4, 10), ("released", 0, 1e-5)])
def test_alpha_learns_where_it_has_an_effect(modulation, low, high):
    scorer = make_scorer(modulation)
    scorer(*parts(make_pyramid(SHAPES))).values.pow(2).mean().backward()
    gradient = scorer.alpha.grad.abs().max().item()
    assert low <= gradient < high


@pytest.mark.parametrize(("modulation", "taught"), [("exact", False), ("released", True)])
def test_fine_scores_give_no_gradient_to_coarse_features(modulation, taught):
    scorer, pyramid = make_scorer(modulation), make_pyramid(((4, 4), (2, 2)))
    tokens, proposals = parts(pyramid)
    projected = proposals.project(tokens.content + tokens.position).detach().requires_grad_()
    scorer(tokens, replace(proposals, projection=lambda *_: projected)).values[:, :16].sum().backward()
    assert projected.grad[:, 16:].any() == taught


def test_a_single_level_is_scored_without_modulation():
    scorer, pyramid = make_scorer("exact", num_levels=1), make_pyramid(((4, 5),))
    tokens, proposals = parts(pyramid)
    projected = proposals.project(tokens.content + tokens.position)
    expected = scorer.network(projected, pyramid.padding_mask)
    assert torch.equal(scorer(tokens, proposals).values, expected)
    assert scorer.alpha.shape == (0,)
    assert not scorer.alpha.requires_grad


def test_alpha_is_one_number_for_each_level_but_the_coarsest_and_starts_at_a_half_or_within_three_tenths():
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=32)
    assert TopDownScorer(network=network, num_levels=4).alpha.tolist() == [0.5, 0.5, 0.5]
    released = TopDownScorer(network=network, num_levels=101, modulation="released").alpha
    assert released.shape == (100,)
    assert 0.25 < released.abs().max() <= 0.3
