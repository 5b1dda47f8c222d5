"""Selected tokens are taken out of the sequence and written back."""

import pytest
import torch

from sparse_detr.structures import AllTokens, CascadedTokens, Pyramid, TopKTokens

CPU = torch.device("cpu")


@pytest.fixture
def selection():
    """Make a selection of two images with five tokens: one keeps 4 and 0, with 2 as surplus; one keeps 1, 2, 3."""
    return TopKTokens.of(torch.tensor([[4, 0, 2], [1, 2, 3]]), torch.tensor([2, 3]), num_tokens=5)


def test_gather_takes_rows_in_the_order_of_the_indices(selection):
    tokens = torch.arange(10.0).view(2, 5)
    assert selection.gather(tokens).tolist() == [[4, 0, 2], [6, 7, 8]]
    boxes = tokens[..., None, None].expand(2, 5, 3, 2)
    assert torch.equal(selection.gather(boxes)[..., 1, 0], selection.gather(tokens))


def test_scatter_writes_kept_rows_and_no_surplus_rows(selection):
    tokens = torch.arange(10.0).view(2, 5, 1)
    rows = -torch.arange(1.0, 7).view(2, 3, 1)
    written = selection.scatter(tokens, rows).squeeze(-1)
    assert written.tolist() == [[-2, 1, 2, 3, -1], [5, -4, -5, -6, 9]]
    assert tokens.flatten().tolist() == list(range(10))


def test_unselected_tokens_come_back_bit_identical(selection):
    tokens = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    written = selection.scatter(tokens, torch.full((2, 3, 7), float("nan")))
    assert torch.equal(written[~selection.keep], tokens[~selection.keep])
    assert written[selection.keep].isnan().all()


def test_a_surplus_row_gets_no_gradient_through_scatter(selection):
    rows = torch.randn(2, 3, 1, requires_grad=True)
    selection.scatter(torch.zeros(2, 5, 1), rows).sum().backward()
    assert rows.grad.squeeze(-1).tolist() == [[1, 1, 0], [1, 1, 1]]


def test_masks_mark_kept_tokens_and_kept_rows(selection):
    assert selection.keep.int().tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 1, 0]]
    assert selection.valid.int().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_all_tokens_gather_and_scatter_are_identities():
    pyramid = Pyramid.of(((2, 2),), (((1, 2),), ((2, 2),)), device=CPU)
    selection, tokens, rows = AllTokens(pyramid), torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    assert selection.gather(tokens) is tokens
    assert selection.scatter(tokens, rows) is rows
    assert selection.indices.tolist() == [[0, 1, 2, 3]] * 2


def test_all_tokens_keep_what_is_not_padding():
    pyramid = Pyramid.of(((2, 2),), (((1, 2),), ((2, 2),)), device=CPU)
    selection = AllTokens(pyramid)
    assert selection.counts.tolist() == [2, 4]
    assert selection.keep.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert torch.equal(selection.valid, selection.keep)


def test_a_selection_without_a_cascade_is_the_same_at_every_layer(selection):
    pyramid = Pyramid.of(((2, 2),), (((1, 2),),), device=CPU)
    for kept in (selection, AllTokens(pyramid)):
        assert kept.at_layer(0) is kept.at_layer(5) is kept


def test_a_cascade_keeps_prefixes_with_counts_of_their_own():
    """Of 4, 0, 2 and of 1, 2, 3 the layers keep 2 and 3 tokens, then 2 and 2, then 1 and 1."""
    nested = CascadedTokens.nested(
        torch.tensor([[4, 0, 2], [1, 2, 3]]), torch.tensor([[2, 3], [2, 2], [1, 1]]), (3, 2, 1), num_tokens=5
    )
    assert [nested.at_layer(i).indices.tolist() for i in range(3)] == [
        [[4, 0, 2], [1, 2, 3]],
        [[4, 0], [1, 2]],
        [[4], [1]],
    ]
    kept = [nested.at_layer(i).keep.int().tolist() for i in range(3)]
    assert kept == [
        [[1, 0, 0, 0, 1], [0, 1, 1, 1, 0]],
        [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]],
        [[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]],
    ]
    assert nested.keep.int().tolist() == kept[0]
