"""Elastic training: every image of a batch has a share of its own."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from sparse_detr import recipes
from sparse_detr.data.loader import build_train_loader
from sparse_detr.engine.training import train
from sparse_detr.modeling.selection import CascadedBudget, ElasticBudget, EvenBudget, LevelBudget
from tests.engine.test_resume import assert_same_checkpoints, final, train_interrupted
from tests.engine.toys import toy_run
from tests.modeling.tiny import build, make_pyramid, picture

SHAPES = ((4, 4), (2, 2))
EVEN = EvenBudget(keep_ratio=0.3)
ENDS = {"min_keep_ratio": 0.1, "max_keep_ratio": 0.8}
# Two images of 170 tokens each.
WIDE, HIGH = picture(64, 128, boxes=((0.1, 0.2, 0.5, 0.7), (0.4, 0.3, 0.9, 0.8))), picture(128, 64)


def elastic(budget=EVEN, **ends):
    return ElasticBudget(budget=budget, **{**ENDS, **ends})


def give(monkeypatch, *shares):
    monkeypatch.setattr(ElasticBudget, "deal", lambda self, batch_size: [self.with_keep_ratio(s) for s in shares])


def dealt_shares(batch_size):
    return [budget.keep_ratio for budget in elastic().deal(batch_size)]


def test_every_image_keeps_the_number_of_its_own_share(monkeypatch):
    """int(20 * 0.1) + 1, int(20 * 0.5) + 1, and all 5 of an image of 2 x 2 and 1 x 1 cells."""
    give(monkeypatch, 0.1, 0.5, 1.0)
    pyramid = make_pyramid(SHAPES, SHAPES, SHAPES, ((2, 2), (1, 1)))
    ranking = torch.arange(60.0).view(3, 20).masked_fill(pyramid.padding_mask, float("-inf"))
    selection = elastic().select(ranking, pyramid)
    assert selection.counts.tolist() == [3, 11, 5]
    assert selection.valid.sum(1).tolist() == [3, 11, 5]
    kept = [row.nonzero().flatten().tolist() for row in selection.keep]
    assert kept == [[17, 18, 19], list(range(9, 20)), [0, 1, 4, 5, 16]]
    assert all(len(set(row)) == 11 for row in selection.indices.tolist())


def test_every_image_keeps_the_numbers_of_its_own_share_in_every_layer_of_a_cascade(monkeypatch):
    """int(20 * 0.1 * c) + 1 and int(20 * 0.5 * c) + 1 for c of 1 and 0.4."""
    give(monkeypatch, 0.1, 0.5)
    cascade = CascadedBudget(keep_ratio=0.3, schedule=[1.0, 0.4])
    selection = elastic(cascade).select(torch.arange(40.0).view(2, 20), make_pyramid(SHAPES, SHAPES, SHAPES))
    assert [selection.at_layer(i).counts.tolist() for i in (0, 1)] == [[3, 11], [1, 5]]
    assert selection.at_layer(1).indices.shape == (2, 5)
    assert selection.at_layer(1).indices[1].tolist() == [19, 18, 17, 16, 15]


@pytest.mark.parametrize("batch_size", [3, 4, 16])
def test_the_smallest_and_the_largest_share_are_in_every_batch_of_three_or_more(batch_size):
    torch.manual_seed(0)
    deals = [dealt_shares(batch_size) for _ in range(300)]
    for deal in deals:
        assert len(deal) == batch_size
        assert sorted(deal)[0] == 0.1
        assert sorted(deal)[-1] == 0.8
        assert sum(share in (0.1, 0.8) for share in deal) == 2
    assert {deal.index(0.1) for deal in deals} == set(range(batch_size))  # each image gets it at times
    drawn = [share for deal in deals for share in deal if share not in (0.1, 0.8)]
    assert min(drawn) < 0.2
    assert max(drawn) > 0.7


def test_a_batch_of_two_or_one_gets_smallest_largest_and_random_shares_equally_often():
    torch.manual_seed(0)
    for batch_size in (1, 2):
        shares = [share for _ in range(600) for share in dealt_shares(batch_size)]
        for end in (0.1, 0.8):
            assert shares.count(end) / len(shares) == pytest.approx(1 / 3, abs=0.05)
    assert all(len(set(dealt_shares(2))) == 2 for _ in range(20))


def test_a_deal_repeats_with_the_seed_of_pytorch():
    def deal():
        torch.manual_seed(5)
        return [dealt_shares(4) for _ in range(3)]

    assert deal() == deal()


@pytest.mark.parametrize("name", ["sparse", "sparse_dino", "focus", "focus_two_stage", "sparse_dab_deformable"])
def test_the_range_changes_training_only(name):
    plain, model = (build(name, training_keep_ratios=ends) for ends in (None, (0.1, 1.0)))
    assert list(plain.state_dict()) == list(model.state_dict())
    shares = (model.outputs([WIDE]).selection.counts.item() / 170 for _ in range(30))
    assert len({round(share, 2) for share in shares}) > 3
    assert model.eval().keep_ratio == plain.eval().keep_ratio
    assert model.mean_keep_ratio == plain.mean_keep_ratio
    outputs = model.outputs([WIDE, HIGH]), plain.outputs([WIDE, HIGH])
    assert torch.equal(*(output.selection.counts for output in outputs))
    assert torch.equal(*(output.predictions.boxes for output in outputs))
    assert model.outputs([WIDE], 0.5).selection.counts.tolist() == [86]


def test_a_share_of_the_call_replaces_the_range_in_training_too():
    model = build("sparse", training_keep_ratios=(0.1, 1.0))
    assert model.outputs([WIDE, HIGH], 0.5).selection.counts.tolist() == [86, 86]


def gradients(model, pictures, budget):
    """Return the losses of pictures and the gradient of their sum; every picture is filled up with noise."""
    model.zero_grad()
    model.backbone.image_sizes = [tuple(image["image"].shape[-2:]) for image in pictures]
    losses = model.losses(pictures, budget)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "shares", "options"),
    [
        ("sparse", (0.1, 0.3), {}),  # of more tokens, some have no attention at all, and equal ranks
        ("sparse", (1.0, 0.1), {"encoder_auxiliary_loss": False}),
        ("sparse_dino", (0.1, 1.0), {"denoising_queries": 0}),
        ("focus", (0.1, 1.0), {"denoising_queries": 0}),
        ("focus_two_stage", (0.6, 0.2), {"encoder_auxiliary_loss": True}),
    ],
)
def test_an_image_has_the_gradient_that_it_has_alone_at_its_share(name, shares, options):
    """Surplus rows and the other image add nothing. The images have as many boxes and tokens, so a batch is a mean."""
    model = build(name, training_keep_ratios=(0.1, 1.0), **options)
    if name.startswith("focus"):  # the images differ in foreground tokens, by which its loss is divided
        model.supervision.normalization = "image"
    losses, gradient = gradients(model, [WIDE, HIGH], list(shares))
    alone = [gradients(model, [image], share) for image, share in zip((WIDE, HIGH), shares, strict=True)]
    for key, loss in losses.items():
        assert_close(loss, sum(of_one[key] for of_one, _ in alone) / 2, atol=1e-9, rtol=0, msg=key)
    assert len(gradient) > 50
    for key, value in gradient.items():
        assert_close(value, sum(of_one[key] for _, of_one in alone) / 2, atol=1e-8, rtol=1e-8, msg=key)


def record(picture_id):
    return {"image_id": picture_id, "file_name": f"{picture_id}.png", "height": 32, "width": 64}


DECODER = {"training_decoder_layers": (1, 2), "training_num_queries": (4, 12), "distillation_weight": 1.0}


def elastic_run(folder, options):
    """Return a run of a tiny elastic model on four pictures, two a batch."""
    loader = lambda: build_train_loader(  # noqa: E731
        dataset=[record(i) for i in range(4)],
        mapper=lambda record: {**picture(32, 64, seed=record["image_id"]), "image_id": record["image_id"]},
        total_batch_size=2,
        num_workers=0,
        seed=3,
    )
    make = lambda: build("sparse", dtype=torch.float32, training_keep_ratios=(0.1, 1.0), **options)  # noqa: E731
    return dataclasses.replace(toy_run(folder, max_iter=6), build_model=make, build_train_loader=loader)


@pytest.mark.parametrize("options", [{}, DECODER], ids=["tokens", "decoder"])
def test_a_resumed_elastic_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, options):
    dealt = []
    deal = ElasticBudget.deal
    monkeypatch.setattr(ElasticBudget, "deal", lambda self, size: dealt.append(deal(self, size)) or dealt[-1])
    torch.manual_seed(1)
    train(elastic_run(tmp_path / "whole", options))
    whole = [dealt.pop() for _ in range(6)][::-1]
    assert len({str(budgets) for budgets in whole}) > 3

    torch.manual_seed(1)
    train_interrupted(elastic_run(tmp_path / "parts", options), monkeypatch, before=5)
    torch.manual_seed(99)
    train(elastic_run(tmp_path / "parts", options), resume_last=True)

    assert dealt[-2:] == whole[-2:]  # of the iterations after the checkpoint
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training_keep_ratios": (0.3,)}, "must be the two ends of a range"),
        ({"training_keep_ratios": (0.1, 1.0), "behavior": "released"}, "use behavior exact"),
    ],
)
@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_a_range_that_cannot_be_trained_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_half_of_the_drawn_budgets_have_shares_of_levels_in_their_ranges():
    """The ends of the batch stay those of the share; the schedule is the model's."""
    cascade = CascadedBudget(keep_ratio=0.3, schedule=[1.0, 0.4])
    budget = elastic(cascade, level_ranges=[[0.1, 0.2], [0.5, 1.0]])
    drawn = [one for _ in range(100) for one in budget.deal(4)]
    levels = [one for one in drawn if isinstance(one, LevelBudget)]
    assert len(levels) == pytest.approx(100, abs=25)
    for one in levels:
        assert 0.1 <= one.shares[0] <= 0.2
        assert 0.5 <= one.shares[1] <= 1.0
        assert one.schedule == (1.0, 0.4)
    assert max(one.shares[1] for one in levels) > 0.9
    assert all({0.1, 0.8} <= {one.keep_ratio for one in budget.deal(4)} for _ in range(20))


@pytest.mark.parametrize("ranges", [[[0.1, 0.2, 0.3]], [[0.5, 0.1]], [[0.0, 0.1]]])
def test_a_range_of_a_level_that_cannot_be_used_is_refused(ranges):
    with pytest.raises(ValueError, match="give two ends, the smaller first|above 0 and at most 1"):
        elastic(level_ranges=ranges)


def test_a_model_learns_from_shares_of_levels():
    shares = [[0.1, 0.5]] * 3 + [[1.0, 1.0]]
    model = build("focus_two_stage", training_keep_ratios=(0.1, 1.0), training_level_shares=shares)
    losses = model([WIDE, HIGH, WIDE])
    sum(losses.values()).backward()
    assert model.selector.training_budget.level_ranges == tuple(map(tuple, shares))


def test_a_model_that_selects_levels_cannot_teach_itself():
    with pytest.raises(ValueError, match="distillation_weight needs a whole model to learn from"):
        recipes.elastic(recipes.lite_deformable_detr(num_classes=2, high_levels=1, blocks=1), distillation_weight=1.0)
