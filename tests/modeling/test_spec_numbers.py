"""Small results of the public implementation, each of which can be computed by hand."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.ops import box_convert, generalized_box_iou

from sparse_detr.layers import MultiScaleDeformableAttention, embed_boxes, embed_tokens, inverse_sigmoid
from sparse_detr.modeling.encoder.deformable import encoder_reference_points
from sparse_detr.modeling.heads import ProposalGenerator
from sparse_detr.modeling.selection import EvenBudget, TokenScores, TopKSelector
from sparse_detr.modeling.training import AttentionMapSupervision, HungarianMatcher, SetCriterion
from sparse_detr.ops import multi_scale_deformable_attention, splat_attention
from sparse_detr.structures import DetectorOutput, PredictionGroup, Pyramid, Targets, Tokens, TopKTokens

CPU = torch.device("cpu")


def padded_map():
    """Make a 3x4 level of which row 2 and column 3 are padding, and an unpadded 2x2 level."""
    return Pyramid.of(((3, 4), (2, 2)), (((2, 3), (2, 2)),), device=CPU)


def token(level, row, column):
    """Return the index of a token of `padded_map`."""
    return (0, 12)[level] + row * (4, 2)[level] + column


def test_inverse_sigmoid_is_finite_at_both_ends():
    assert_close(inverse_sigmoid(torch.tensor([0.0, 0.25, 1.0])), torch.tensor([-11.512925, -1.0986123, 11.512925]))


def test_focal_loss_sums_over_queries_and_classes():
    group = PredictionGroup(
        name="decoder_0",
        suffix="",
        logits=torch.tensor([[[2.0, -1.0], [0.5, -3.0]]]),
        boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]]),
    )
    targets = [Targets(labels=torch.tensor([0]), boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))]
    criterion = SetCriterion(matcher=HungarianMatcher())
    losses = criterion.group_losses([group], targets, normalizer=torch.tensor(1.0))[0]
    assert losses["class"].item() == pytest.approx(0.3005851, abs=1e-6)


def test_generalized_iou_of_two_hand_made_boxes_is_a_half():
    boxes = box_convert(torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.4, 0.2]]), "cxcywh", "xyxy")
    assert generalized_box_iou(boxes[:1], boxes[1:]).item() == pytest.approx(0.5)


def test_token_score_loss_is_binary_cross_entropy_over_all_tokens():
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    counts = labels.sum(1).long()
    output = DetectorOutput(
        groups=(),
        predictions=None,
        pyramid=Pyramid.of(((1, 3),), (((1, 3),),) * 2, device=CPU),
        selection=TopKTokens.of(torch.zeros(2, 2, dtype=torch.long), counts, num_tokens=3),
        token_scores=torch.tensor([[2.0, -1, 0.5], [0, 1, -2]]),
        attention_map=labels,
        image_sizes=((8, 24),) * 2,
    )
    loss = AttentionMapSupervision(padding="negative")(output, [])["loss_token_score"]
    assert loss.item() == pytest.approx(0.7579339, abs=1e-6)


def test_position_embedding_counts_valid_rows_and_columns():
    position = embed_tokens(padded_map(), 256, dtype=torch.float64)[0, token(0, 1, 2)]
    rows = torch.tensor([-1.0, -1.8954e-06, -0.8070661, -0.5904610], dtype=torch.float64)
    columns = torch.tensor([-0.8660262, 0.4999987, -0.9841623, -0.1772698], dtype=torch.float64)
    assert_close(position[:4], rows, atol=5e-7, rtol=0)
    assert_close(position[128:132], columns, atol=5e-7, rtol=0)


def test_encoder_reference_points_are_centres_on_every_padded_level():
    pyramid = Pyramid.of(((3, 4), (2, 2)), (((2, 3), (2, 1)),), device=CPU)
    references = encoder_reference_points(pyramid, torch.float32)[0]
    assert_close(references[token(0, 1, 2)], torch.tensor([[0.625, 0.5], [0.4166667, 0.75]]))
    assert_close(references[token(1, 1, 1)], torch.tensor([[1.125, 0.5], [0.75, 0.75]]))


def test_proposals_double_in_size_with_every_level_and_have_huge_logits_on_padding():
    proposals = ProposalGenerator(border="dropped")(padded_map(), torch.float32)
    logits = proposals.box_logits[0]
    assert_close(logits[token(0, 1, 2)], torch.tensor([1.6094378, 1.0986123, -2.9444389, -2.9444389]))
    assert_close(logits[token(1, 1, 0)], torch.tensor([-1.0986123, 1.0986123, -2.1972246, -2.1972246]))
    assert logits[token(0, 2, 0)].sigmoid().tolist() == [1.0] * 4  # infinite logits in the public implementation
    assert padded_map().valid_counts == [10]


def test_box_embedding_interleaves_sine_and_cosine_of_four_coordinates():
    embedding = embed_boxes(torch.tensor([0.0, 1.0, -1.0, 2.0]).double().sigmoid(), 128, dtype=torch.float64)
    expected = [-8.7e-08, -1.0, 0.4087512, -0.9929264, -0.1187316, 0.9929264, 0.9999998]
    assert embedding[[0, 1, 2, 128, 129, 256, 511]].tolist() == pytest.approx(expected, abs=5e-7)


def test_attention_starts_with_one_direction_a_head_and_one_step_a_point():
    attention = MultiScaleDeformableAttention(embed_dim=16, num_heads=8, num_levels=2, num_points=4)
    bias = attention.sampling_offsets.bias.detach().view(8, 2, 4, 2)
    directions = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    for point in range(4):
        assert_close(bias[:, 1, point], directions * (point + 1), atol=1e-5, rtol=0)


def test_the_released_attention_map_is_shifted_by_half_a_pixel():
    shapes = ((4, 6),)
    location = torch.tensor([2.5 / 6, 1.5 / 4]).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1)
    released = splat_attention(shapes, location, weight, pixel_offset=0.0).view(4, 6)
    expected = torch.zeros(4, 6)
    expected[1:3, 2:4] = 0.25
    assert_close(released, expected)
    value = torch.arange(24.0).view(1, 24, 1, 1)
    assert multi_scale_deformable_attention(value, shapes, location, weight).item() == pytest.approx(1 * 6 + 2)


class FixedScores(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, tokens, proposals):
        return TokenScores(self.values)


def test_released_padding_scores_send_their_gradient_to_the_lowest_score():
    pyramid = Pyramid.of(((1, 5),), (((1, 3),), ((1, 4),)), device=CPU)
    scorer = FixedScores(torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, -1]]))
    empty = torch.zeros(2, 5, 4)
    selector = TopKSelector(scorer=scorer, budget=EvenBudget(keep_ratio=0.5), padding="lowest")
    selector(Tokens(content=empty, position=empty, pyramid=pyramid), None).scores.sum().backward()
    assert scorer.values.grad.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 3]]
