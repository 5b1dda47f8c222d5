"""The ledger adds up to the FLOPs of the encoder and to the refined tokens; a proposal is tried before it is made."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis

from sparse_detr.analysis.flops import register_flop_handles
from sparse_detr.explain import ImageRuns, Target, list_targets, make_ledger, propose_levels
from sparse_detr.explain.ledger import Proposal, needed_shares, token_sizes
from sparse_detr.explain.words import proposal_sentence
from tests.explain.made_up import MadeUpRuns
from tests.modeling.tiny import build, picture


def runs_of(name, **options):
    return ImageRuns(build(name, dtype=torch.float32).eval(), picture(96, 128), **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sparse", "focus", "topk", "lite", "pnp"])
def test_the_rows_sum_to_the_flops_of_the_encoder(name):
    runs = runs_of(name)
    ledger = make_ledger(runs, [], rounds=0)
    register_flop_handles()
    counted = FlopCountAnalysis(runs.model, [runs.item]).ancestor_mode("caller")
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    encoder = sum(count for module, count in counted.by_module().items() if module.endswith("encoder"))
    assert ledger.gigaflops == pytest.approx(encoder / 1e9)
    assert ledger.gigaflops > 0


@pytest.mark.filterwarnings("ignore")
def test_the_rows_sum_to_the_refined_tokens_of_every_layer():
    runs = runs_of("focus")
    objects = [Target(torch.tensor([10.0, 10, 80, 60]), 0), Target(torch.tensor([60.0, 40, 70, 50]), 1)]
    ledger = make_ledger(runs, objects, rounds=1)
    for layer, kept in enumerate(runs.kept):
        rows = [row for row in ledger.rows if row.layer == layer]
        assert sum(row.kept for row in rows) == int(kept.sum())
        assert sum(row.tokens for row in rows) == runs.pyramid.num_tokens
        assert all(sum(row.kept_by_size.values()) == row.kept for row in rows)
        assert all(row.cost.milliseconds >= 0 for row in rows)
    assert sum(cost.gigaflops for cost in ledger.cost_by_size.values()) == pytest.approx(ledger.gigaflops)
    assert 0 < ledger.background_share < 1


@pytest.mark.filterwarnings("ignore")
def test_a_smaller_budget_costs_less():
    small, large = (make_ledger(runs_of("sparse", budget=budget), [], rounds=0) for budget in (0.1, 0.8))
    assert small.gigaflops < large.gigaflops
    assert sum(row.kept for row in small.rows) < sum(row.kept for row in large.rows)


def test_a_token_belongs_to_the_smallest_object_over_it():
    """Of 16 fine tokens of 10 pixels, the small object has one and the larger object the other 15."""
    runs = MadeUpRuns(lambda edit: 0.8)
    small, medium = torch.tensor([0.0, 0, 9, 9]), torch.tensor([0.0, 0, 36, 36])
    sizes = token_sizes(runs, [Target(medium, 0), Target(small, 0)])
    assert sizes["small"].nonzero()[:, 0].tolist() == [0]
    assert int(sizes["medium"][:16].sum()) == 15
    assert int(sum(mask.long() for mask in sizes.values()).min()) == 1
    assert int(sum(mask.long() for mask in sizes.values()).max()) == 1


def test_a_level_needs_the_tokens_that_hold_its_attention():
    """On the fine level 2 of 8 kept tokens hold 95 % of the attention; on the coarse one all 4 are needed."""
    runs = MadeUpRuns(lambda edit: 0.8)
    runs.model = build("sparse")
    runs.kept[0][8:16] = False
    attention = torch.zeros(1, 20)
    attention[0, :3] = torch.tensor([90.0, 8.0, 2.0])
    attention[0, 16:] = 1.0
    runs.output = SimpleNamespace(token_scores=-torch.arange(20.0)[None], attention_map=attention)
    assert needed_shares(runs) == pytest.approx([2 / 16, 1.0])


def test_a_proposal_is_tried_on_the_images():
    runs = runs_of("sparse", budget=1.0)
    found = list_targets(runs.prediction, 0.0)[:3]
    proposal = propose_levels([(runs, found)], score_threshold=0.0)
    assert proposal.text.startswith("levels:")
    assert proposal.tokens_now == runs.pyramid.num_tokens
    assert 0 < proposal.tokens <= proposal.tokens_now
    assert proposal.detections == 3
    assert propose_levels([(runs_of("topk"), [])], score_threshold=0.3) is None


@pytest.mark.parametrize(
    ("tokens", "lost", "change", "better"),
    [(80, 0, 0.0, True), (80, 0, -0.005, True), (80, 1, 0.0, False), (80, 0, -0.02, False), (95, 0, 0.0, False)],
)
def test_a_proposal_is_better_if_it_saves_a_tenth_and_loses_nothing(tokens, lost, change, better):
    proposal = Proposal("levels:0.2,0.5", 100, tokens, detections=9, lost=lost, score_change=change)
    assert proposal.is_better is better


def test_a_proposal_that_was_tried_on_no_detection_is_not_better():
    assert not Proposal("levels:0.2,0.5", 100, 50, detections=0, lost=0, score_change=0.0).is_better


def test_the_sentences_name_the_budget_to_paste():
    text = proposal_sentence(Proposal("levels:0.2,0.5", 100, 80, detections=9, lost=0, score_change=0.0))
    assert text.startswith("--budget levels:0.2,0.5 would refine 80 instead of 100 tokens")
