"""What a selection covers, by hand on a small pyramid of two levels."""

import pytest
import torch

from sparse_detr.analysis.tokens import (
    covered_attention,
    covered_attention_per_level,
    covered_boxes,
    kept_share,
    object_tokens,
    referenced_tokens,
    watch_object_rows,
)
from sparse_detr.structures import CascadedTokens, Pyramid

# Level 0: 2 x 4 cells, tokens 0..7; level 1: 1 x 2 cells, tokens 8 and 9.
SHAPES = ((2, 4), (1, 2))


@pytest.fixture
def pyramid() -> Pyramid:
    """Make an image without padding, and one of half its width, of which tokens 2, 3, 6, 7 and 9 are padding."""
    return make_pyramid(SHAPES, ((2, 2), (1, 1)))


def make_pyramid(*valid_shapes: tuple[tuple[int, int], ...]) -> Pyramid:
    return Pyramid.of(SHAPES, valid_shapes, device=torch.device("cpu"))


def mask(*kept_of_images: list[int]) -> torch.Tensor:
    kept = torch.zeros(len(kept_of_images), 10, dtype=torch.bool)
    for image, tokens in enumerate(kept_of_images):
        kept[image, tokens] = True
    return kept


def test_kept_share_counts_valid_tokens_only(pyramid):
    share = kept_share(mask([0, 5, 8], [0, 1, 2, 3, 9]), pyramid)
    assert share.tolist() == [[2 / 8, 1 / 2], [2 / 4, 0]]


def test_covered_attention_is_the_share_of_the_attention_on_kept_tokens():
    attention = torch.arange(10.0).expand(2, 10)  # sums to 45
    torch.testing.assert_close(covered_attention(mask([9], []), attention), torch.tensor([9 / 45, 0]))


def test_covered_attention_is_one_if_everything_is_kept(pyramid):
    attention = torch.rand(2, 10)
    torch.testing.assert_close(covered_attention(~mask([], []), attention), torch.ones(2))


def test_covered_attention_is_undefined_only_on_levels_without_attention(pyramid):
    attention = torch.zeros(2, 10)
    attention[:, 3] = 1
    covered = covered_attention_per_level(mask([3], [4]), attention, pyramid)
    assert covered[:, 0].tolist() == [1, 0]
    assert covered[:, 1].isnan().all()
    assert covered.nanmean(0)[0] == 0.5


def test_a_box_is_covered_by_a_kept_token_centre_inside_it(pyramid):
    right_half = torch.tensor([[0.75, 0.5, 0.5, 1.0]])
    boxes = [right_half, right_half]
    assert [box.tolist() for box in covered_boxes(mask([0, 3], [0, 3]), boxes, pyramid)] == [[True], [False]]


def test_a_box_smaller_than_a_cell_is_covered_by_a_token_whose_cell_holds_it():
    speck = torch.tensor([[0.01, 0.01, 0.001, 0.001]])  # in token 0 of level 0 and token 8 of level 1
    for kept, expected in [([0], True), ([8], True), ([1, 4, 9], False)]:
        assert covered_boxes(mask(kept), [speck], make_pyramid(SHAPES))[0].tolist() == [expected]


def test_an_image_without_boxes_has_none_to_cover(pyramid):
    assert [box.shape for box in covered_boxes(mask([0], [0]), [torch.zeros(0, 4)] * 2, pyramid)] == [(0,), (0,)]


def test_samples_mark_the_cells_they_lie_in_and_nothing_outside_or_on_padding(pyramid):
    locations = torch.full((2, 1, 1, 2, 3, 2), -1.0)  # (B, Q, M, L, P, 2)
    locations[:, 0, 0, 0, 0] = torch.tensor([0.26, 0.6])  # level 0, row 1, column 1: token 5
    locations[:, 0, 0, 0, 1] = torch.tensor([0.99, 0.0])  # level 0, row 0, column 3: token 3, padding of image 1
    locations[:, 0, 0, 1, 0] = torch.tensor([1.0, 0.5])  # just outside level 1
    referenced = referenced_tokens(locations, pyramid)
    assert [image.nonzero().flatten().tolist() for image in referenced] == [[3, 5], [5]]


def test_samples_of_several_layers_add_up(pyramid):
    layers = torch.rand(2, 6, 5, 8, 2, 4, 2)  # (B, layers, Q, M, L, P, 2)
    apart = [referenced_tokens(layer, pyramid) for layer in layers.unbind(1)]
    assert torch.equal(referenced_tokens(layers, pyramid), torch.stack(apart).any(0))


class Layer(torch.nn.Module):
    """An encoder layer with given object tokens."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def object_tokens(self, rows, head):
        return self.rows

    def forward(self, rows, source, pyramid, head):
        return rows


def test_object_tokens_are_those_of_the_last_layer_without_surplus_rows():
    """The last layer refines tokens 4 and 0 of one image and token 1 of the other, whose second row is surplus."""
    indices, counts = torch.tensor([[4, 0, 2], [1, 2, 3]]), torch.tensor([[3, 2], [2, 1]])
    selection = CascadedTokens.nested(indices, counts, (3, 2), num_tokens=5)
    layers = torch.nn.ModuleList([Layer(torch.tensor([[0], [0]])), Layer(torch.tensor([[1, 0], [1, 0]]))])
    encoder = torch.nn.Module()
    encoder.layers = layers
    with watch_object_rows(encoder) as rows:
        for layer in layers:
            layer(None, None, None, None)
    assert object_tokens(selection, rows).int().tolist() == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]]
    layers[0](None, None, None, None)
    assert len(rows) == 2
    assert not layers[0]._forward_pre_hooks


def test_an_encoder_without_object_tokens_gives_none():
    encoder = torch.nn.Module()
    encoder.layers = torch.nn.ModuleList([torch.nn.Identity()])
    with watch_object_rows(encoder) as rows:
        encoder.layers[0](torch.zeros(1))
    assert object_tokens(None, rows) is None
