"""Poll and pool: against the formulas written out for one image, by hand, and at the ends of the range of shares."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.modeling.initialization import initialize_transformer
from sparse_detr.modeling.selection import (
    CascadedBudget,
    EvenBudget,
    MLPScorer,
    PollAndPool,
    RandomBudget,
    RoundedDownBudget,
    TokenPool,
)
from sparse_detr.modeling.training import PolledScorePenalty
from sparse_detr.structures import DetectorOutput, Pyramid, Tokens, TopKTokens
from tests.modeling.tiny import make_pyramid, make_tokens, shake

DIM, POOLED = 8, 3
SHAPES = ((4, 5),)
PADDED = make_pyramid(SHAPES, ((4, 5),), ((2, 3),))


def sampler(keep_ratio=1 / 3, **options):
    torch.manual_seed(0)
    model = PollAndPool(
        scorer=MLPScorer(embed_dim=DIM),
        pool=TokenPool(embed_dim=DIM, num_pooled=POOLED),
        budget=RoundedDownBudget(keep_ratio=keep_ratio),
        **options,
    ).double()
    shake(model)
    return model


def tokens_of(pyramid, *, seed=0):
    return make_tokens(pyramid, DIM, seed=seed)


def valid_rows(tokens, image):
    """Return content and position (K + S, C) of the tokens of an image that are no filling."""
    keep = ~tokens.padding_mask[image]
    return tokens.content[image][keep], tokens.position[image][keep]


def formulas(model, content, position, keep_ratio):
    """Return content and position of the sampled tokens of one image without padding, token by token."""
    (hidden, last), pool = model.scorer.mlp.linears, model.pool

    def linear(layer, x):
        return layer.weight @ x + layer.bias

    def norm(x):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt()

    scores = [1 / (1 + math.exp(-linear(last, linear(hidden, x).clamp(min=0)).item())) for x in content]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    polled = order[: max(int(len(scores) * keep_ratio), 1)]
    others = [token for token in range(len(scores)) if token not in polled]
    contents = [scores[token] * norm(content[token]) for token in polled]
    positions = [position[token] for token in polled]
    for slot in range(POOLED):
        weights = [math.exp(linear(pool.weight_proj, norm(content[token]))[slot].item()) for token in others]
        shares = [weight / sum(weights) for weight in weights]
        values = [linear(pool.value_proj, norm(content[token])) for token in others]
        contents.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        positions.append(sum(share * position[token] for share, token in zip(shares, others, strict=True)))
    return torch.stack(contents), torch.stack(positions)


@pytest.mark.parametrize("keep_ratio", [0.05, 1 / 3, 0.65])
def test_the_sampled_tokens_are_those_of_the_formulas(keep_ratio):
    model, tokens = sampler(keep_ratio), tokens_of(make_pyramid(SHAPES))
    sampled = model(tokens, None).tokens
    expected = formulas(model, tokens.content[0], tokens.position[0], keep_ratio)
    for values, wanted in zip(valid_rows(sampled, 0), expected, strict=True):
        assert_close(values, wanted)


def test_pooling_is_a_mean_weighted_by_what_the_tokens_say():
    """Two tokens of two channels, with weights in the ratio 3 : 1."""
    pool = TokenPool(embed_dim=2, num_pooled=1).double()
    with torch.no_grad():
        pool.weight_proj.weight.copy_(torch.tensor([[math.log(3) / 2, 0.0]]))
        pool.weight_proj.bias.fill_(7.0)  # the same for all tokens: no effect
        pool.value_proj.weight.copy_(torch.eye(2))
        pool.value_proj.bias.copy_(torch.tensor([10.0, 20.0]))
    content = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    position = torch.tensor([[[0.0, 8.0], [4.0, 0.0]]], dtype=torch.float64)
    tokens = Tokens(content, position, make_pyramid(((1, 2),)))
    pooled, place, weights = pool(tokens, torch.ones(1, 2, dtype=torch.bool))
    assert_close(weights, torch.tensor([[[0.75, 0.25]]], dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(pooled, torch.tensor([[[10.5, 19.5]]], dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close(place, torch.tensor([[[1.0, 6.0]]], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_ratio", [0.05, 1 / 3, 0.9, 1.0])
def test_an_image_of_a_batch_gives_what_it_gives_alone(keep_ratio):
    model, tokens = sampler(keep_ratio), tokens_of(PADDED)
    selected = model(tokens, None)
    assert not selected.tokens.content.isnan().any()
    valid = ~PADDED.padding_mask[1]
    alone = Tokens(tokens.content[1:, valid], tokens.position[1:, valid], make_pyramid(((2, 3),)))
    expected = model(alone, None)
    for values, wanted in zip(valid_rows(selected.tokens, 1), valid_rows(expected.tokens, 0), strict=True):
        assert_close(values, wanted)
    pooling = selected.selection.pooling[1]
    assert_close(pooling[:, valid], expected.selection.pooling[0])
    assert not pooling[:, ~valid].any()


def test_polled_tokens_and_padding_are_never_pooled():
    selection = sampler()(tokens_of(PADDED), None).selection
    weights = selection.pooling
    assert selection.counts.tolist() == [6, 2]
    assert_close(weights.sum(-1), torch.ones(2, POOLED, dtype=torch.float64))
    assert ((weights > 0) == ~(selection.keep | PADDED.padding_mask)[:, None]).all()


def test_with_all_tokens_polled_nothing_is_pooled_and_gradients_are_finite():
    model, tokens = sampler(), tokens_of(PADDED)
    selected = model(tokens, None, 1.0)
    assert selected.selection.counts.tolist() == [20, 6]
    assert selected.tokens.padding_mask[:, -POOLED:].all()
    assert not selected.selection.pooling.any()
    selected.tokens.content.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("count", "keep_ratio", "kept"), [(1, 0.33, 1), (2, 0.33, 1), (300, 1 / 3, 100), (850, 0.65, 552)]
)
def test_the_share_is_rounded_down_but_one_token_stays(count, keep_ratio, kept):
    scores = torch.rand(1, count)
    selection = RoundedDownBudget(keep_ratio=keep_ratio).select(scores, make_pyramid(((1, count),)))
    assert selection.counts.tolist() == [kept]
    assert selection.indices.shape == (1, kept)


@pytest.mark.parametrize("keep_ratio", [0.1, 1 / 3, 0.5, 0.65, 0.8, 1.0])
def test_a_count_in_double_precision_is_that_of_python(keep_ratio):
    counts = torch.arange(1, 5000)
    expected = [max(int(count * keep_ratio), 1) for count in counts.tolist()]
    assert RoundedDownBudget(keep_ratio=keep_ratio).count(counts).tolist() == expected


@pytest.mark.parametrize(("count", "keep_ratio", "double", "single"), [(180, 0.65, 117, 116), (90, 0.7, 62, 63)])
def test_a_count_in_single_precision_is_that_of_the_public_code(count, keep_ratio, double, single):
    """The product 0.65 x 180 is rounded below 117 in single precision only, 0.7 x 90 below 63 in double only."""
    image, unknown = make_pyramid(((1, count),)), Pyramid.of(((1, count),), torch.tensor([[[1, count]]]))
    for precision, expected in (("double", double), ("single", single)):
        budget = RoundedDownBudget(keep_ratio=keep_ratio, precision=precision)
        assert budget.with_keep_ratio(0.5).precision == precision
        for pyramid in (image, unknown):
            assert budget.select(torch.rand(1, count), pyramid).counts.tolist() == [expected]
    public = (torch.tensor(count) * keep_ratio).int().item()
    assert public == single


def test_a_random_budget_draws_from_its_range_and_repeats_with_the_seed():
    budget = RandomBudget(budget=RoundedDownBudget(keep_ratio=0.5), min_keep_ratio=0.2, max_keep_ratio=0.6)
    scores, pyramid = torch.rand(1, 1000), make_pyramid(((20, 50),))

    def draw():
        torch.manual_seed(3)
        return [budget.select(scores, pyramid).counts.item() for _ in range(60)]

    counts = draw()
    assert counts == draw()
    assert 200 <= min(counts) < 240
    assert 560 < max(counts) <= 600
    assert budget.keep_ratio == pytest.approx(0.4)


def test_a_random_budget_is_for_training_and_a_share_of_a_call_overrides_it():
    model = sampler(inference_keep_ratio=0.25)
    model.training_budget = RandomBudget(budget=model.training_budget, min_keep_ratio=0.5, max_keep_ratio=1.0)
    tokens = tokens_of(make_pyramid(SHAPES))
    counts = {model(tokens, None).selection.counts.item() for _ in range(40)}
    assert min(counts) >= 10
    assert len(counts) > 3
    assert {model(tokens, None, 0.1).selection.counts.item() for _ in range(5)} == {2}
    assert model.eval()(tokens, None).selection.counts.tolist() == [5]


@pytest.mark.parametrize("ends", [(0.0, 0.5), (0.5, 1.1), (0.6, 0.5)])
def test_a_range_that_cannot_be_used_is_refused(ends):
    with pytest.raises(ValueError, match=r"keep_ratio must be|smaller end"):
        RandomBudget(budget=EvenBudget(keep_ratio=0.5), min_keep_ratio=ends[0], max_keep_ratio=ends[1])


def test_a_cascade_is_refused():
    with pytest.raises(ValueError, match="CascadedTokens, but all layers of this encoder refine the same tokens"):
        sampler()(tokens_of(PADDED), None, CascadedBudget(keep_ratio=0.5, schedule=[1.0, 0.5]))


def test_the_losses_of_detections_train_the_scorer_through_the_polled_tokens():
    model = sampler()
    sampled = model(tokens_of(PADDED), None).tokens
    sampled.content[:, :-POOLED].sum().backward()
    assert all(parameter.grad.any() for parameter in model.scorer.parameters())


def test_new_layers_start_as_those_of_pytorch_also_inside_a_detector():
    """Uniform in 1 / sqrt(C); Xavier's range would be larger for few outputs."""
    torch.manual_seed(0)
    model = PollAndPool(
        scorer=MLPScorer(embed_dim=64),
        pool=TokenPool(embed_dim=64, num_pooled=30),
        budget=RoundedDownBudget(keep_ratio=0.5),
    )
    model.apply(initialize_transformer)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.abs().max() <= 1 / 8
            assert layer.weight.numel() < 100 or layer.weight.abs().max() > 0.12
            assert layer.bias.abs().max() <= 1 / 8


def penalty(rows):
    """Four tokens of two images; two are polled of the first image and one of the second."""
    scores = torch.tensor([[0.9, 0.5, 0.1, 0.2], [0.6, 0.3, 0.2, 0.1]]).logit()
    selection = TopKTokens.of(torch.tensor([[0, 1], [0, 1]]), torch.tensor([2, 1]), num_tokens=4)
    output = DetectorOutput((), None, None, selection, scores, None, ())
    return PolledScorePenalty(weight=10.0, rows=rows)(output, [])["loss_polled_scores"].item()


def test_the_penalty_is_the_mean_score_of_polled_tokens():
    assert penalty("valid") == pytest.approx(10 * (0.9 + 0.5 + 0.6) / 3)
    assert penalty("all") == pytest.approx(10 * (0.9 + 0.5 + 0.6 + 0.3) / 4)
