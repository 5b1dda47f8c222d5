"""Proposals, the queries made from them, and learned queries."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import embed_boxes
from sparse_detr.modeling.heads import PredictionHead, ProposalGenerator, ProposalProjection
from sparse_detr.modeling.queries import (
    BoxStart,
    LearnedQueries,
    LearnedStart,
    MemoryStart,
    ProjectedStart,
    TopKQueries,
)
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((4, 5), (2, 3))
PADDED = (SHAPES, ((2, 3), (1, 2)))


def top_k(pyramid, *, num_queries=6, border="clamped", seed=0, start=None, **options):
    """Return queries of random memory, and everything they were made from."""
    torch.manual_seed(seed)
    memory = make_tokens(pyramid).content.requires_grad_()
    projection = ProposalProjection(embed_dim=32).double()
    head = PredictionHead(embed_dim=32, num_classes=3).double()
    shake(head)
    proposals = ProposalGenerator(border=border)(pyramid, torch.float64, projection=projection, head=head)
    start = start or MemoryStart(embed_dim=32)
    queries = TopKQueries(num_queries=num_queries, start=start, **options).double()
    return queries(memory, proposals), memory, head


def test_clamped_proposals_keep_every_valid_token_and_exclude_padding():
    proposals = ProposalGenerator()(make_pyramid(SHAPES, *PADDED), torch.float64)
    padding = make_pyramid(SHAPES, *PADDED).padding_mask
    assert torch.equal(proposals.valid, ~padding)
    assert torch.equal(proposals.keep, ~padding)
    boxes = proposals.box_logits.sigmoid()
    assert bool(((boxes >= 0.01 - 1e-12) & (boxes <= 0.99 + 1e-12)).all())
    assert boxes[0, 6].tolist() == pytest.approx([0.3, 0.375, 0.05, 0.05])  # level 0, row 1, column 1
    assert boxes[0, 20].tolist() == pytest.approx([1 / 6, 0.25, 0.1, 0.1])  # level 1, row 0, column 0


def test_proposals_never_exceed_the_image_however_many_levels_there_are():
    pyramid = make_pyramid(((2, 2), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)))
    boxes = ProposalGenerator()(pyramid, torch.float64).box_logits.sigmoid()
    assert boxes[0, -1].tolist() == pytest.approx([0.5, 0.5, 0.99, 0.99])


def test_released_proposals_of_border_tokens_fill_the_image_and_may_still_become_queries():
    pyramid = make_pyramid(((1, 200),))  # the first token is centred at 0.0025
    proposals = ProposalGenerator(border="dropped")(pyramid, torch.float64)
    assert proposals.box_logits[0, 0].sigmoid().tolist() == [1.0] * 4
    assert proposals.box_logits[0, 5].isfinite().all()
    assert proposals.valid[0, :3].tolist() == [False, False, True]
    assert proposals.keep is None


def test_the_projection_reads_zeros_for_tokens_without_a_proposal():
    pyramid = make_pyramid(SHAPES, *PADDED)
    projection = ProposalProjection(embed_dim=32).double()
    torch.nn.init.normal_(projection.norm.bias)
    proposals = ProposalGenerator()(pyramid, torch.float64, projection=projection)
    projected = proposals.project(make_tokens(pyramid).content)
    padding = projected[pyramid.padding_mask]
    assert_close(padding, projection.norm(projection.linear.bias).expand_as(padding))


def test_the_best_proposals_become_queries_with_their_memory_as_content():
    queries, memory, _ = top_k(make_pyramid(SHAPES))
    score = queries.proposals.logits[0].max(-1).values
    rows = score.argsort(descending=True)[:6]
    assert torch.equal(queries.content, memory[:, rows])
    assert_close(queries.reference_points, queries.proposals.boxes[:, rows])
    assert queries.valid is None
    assert not queries.reference_points.requires_grad
    assert queries.content.requires_grad


def test_the_position_is_projected_from_the_embedding_of_the_box():
    pyramid = make_pyramid(SHAPES)
    torch.manual_seed(0)
    queries = TopKQueries(num_queries=4, start=MemoryStart(embed_dim=32)).double()
    proposals = ProposalGenerator()(
        pyramid,
        torch.float64,
        projection=ProposalProjection(embed_dim=32).double(),
        head=PredictionHead(embed_dim=32, num_classes=3).double(),
    )
    made = queries(make_tokens(pyramid).content, proposals)
    projection = queries.start.position_projection
    expected = projection.norm(projection.linear(embed_boxes(made.reference_points, 16, dtype=torch.float64)))
    assert torch.equal(made.position, expected)
    assert expected.shape == (1, 4, 32)


def test_class_agnostic_two_stage_ranks_by_the_first_logit_and_projects_content_and_position():
    queries, _, _ = top_k(make_pyramid(SHAPES), start=BoxStart(embed_dim=32), class_agnostic=True)
    rows = queries.proposals.logits[0, :, 0].argsort(descending=True)[:6]
    assert_close(queries.reference_points[0], queries.proposals.boxes[0, rows])
    assert queries.content.shape == queries.position.shape == (1, 6, 32)
    assert queries.proposals.class_agnostic
    assert queries.proposals.suffix == "_enc"


def test_padding_becomes_a_query_only_to_fill_the_batch_and_is_not_valid():
    queries, _, _ = top_k(make_pyramid(SHAPES, *PADDED), num_queries=10)
    assert queries.valid.sum(1).tolist() == [10, 8]
    assert queries.valid[1].tolist() == [True] * 8 + [False] * 2
    assert queries.proposals.valid.sum(1).tolist() == [26, 8]


def test_fewer_tokens_than_queries_give_fewer_queries():
    queries, _, _ = top_k(make_pyramid(((1, 1), (1, 1))), num_queries=6)
    assert queries.content.shape == (1, 2, 32)
    assert queries.position.shape == (1, 2, 32)


def test_decoder_losses_reach_the_memory_but_not_the_proposal_head():
    queries, memory, head = top_k(make_pyramid(SHAPES))
    (queries.content.sum() + queries.position.sum() + queries.reference_points.sum()).backward()
    assert memory.grad.any()
    assert all(parameter.grad is None for parameter in head.parameters())


def test_mixed_queries_have_learned_content_and_no_position():
    start = LearnedStart(num_queries=6, embed_dim=32).double()
    queries, _, _ = top_k(make_pyramid(SHAPES, *PADDED), start=start)
    assert torch.equal(queries.content, start.embedding.weight.expand(2, -1, -1))
    assert queries.position is None
    few, _, _ = top_k(make_pyramid(((1, 1), (1, 1))), start=start)
    assert torch.equal(few.content[0], start.embedding.weight[:2])


def test_queries_may_start_from_the_projected_tokens_without_a_gradient_to_them():
    queries, memory, _ = top_k(make_pyramid(SHAPES), start=ProjectedStart())
    assert not queries.content.requires_grad
    assert queries.position is None
    assert not torch.equal(queries.content, memory[:, :6])


def test_supervising_chosen_proposals_only_chooses_the_same_and_returns_only_these():
    pyramid = make_pyramid(SHAPES, *PADDED)
    every, _, _ = top_k(pyramid, num_queries=10)
    chosen, _, _ = top_k(pyramid, num_queries=10, supervise="chosen")
    assert_close(chosen.reference_points, every.reference_points)
    assert torch.equal(chosen.content, every.content)
    assert chosen.proposals.logits.shape == (2, 10, 3)
    assert_close(chosen.proposals.boxes, chosen.reference_points)
    assert torch.equal(chosen.proposals.valid, chosen.valid)
    best = every.proposals.logits[0].amax(-1).topk(10).values
    assert_close(chosen.proposals.logits[0].amax(-1), best)


def test_learned_queries_are_the_same_for_every_image_and_learn_their_reference_points():
    torch.manual_seed(0)
    queries = LearnedQueries(num_queries=5, embed_dim=32)
    made = queries(torch.zeros(3, 7, 32), None)
    position, content = queries.embedding.weight.chunk(2, -1)
    assert torch.equal(made.position[2], position)
    assert torch.equal(made.content[1], content)
    assert_close(made.reference_points[0], queries.reference_points(position).sigmoid())
    made.reference_points.sum().backward()
    assert queries.embedding.weight.grad[:, :32].any()
    assert not queries.embedding.weight.grad[:, 32:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_learned_reference_points_keep_single_precision_under_autocast(dtype):
    queries = LearnedQueries(num_queries=5, embed_dim=32)
    with torch.autocast("cpu", dtype):
        made = queries(torch.zeros(1, 7, 32), None)
    assert made.reference_points.dtype == torch.float32
