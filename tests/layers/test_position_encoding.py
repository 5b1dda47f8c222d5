"""Sine embeddings, by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import embed_boxes, embed_tokens
from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.structures import Pyramid

CPU = torch.device("cpu")


def test_channels_interleave_sine_and_cosine_of_falling_frequencies():
    embedding = sine_embedding(torch.tensor(0.7, dtype=torch.float64), 4, temperature=100.0)
    expected = [math.sin(0.7), math.cos(0.7), math.sin(0.07), math.cos(0.07)]
    assert embedding.tolist() == pytest.approx(expected)


def test_rows_come_before_columns_and_both_span_two_pi():
    pyramid = Pyramid.of(((1, 4),), (((1, 4),),), device=CPU)
    embedding = embed_tokens(pyramid, 4, dtype=torch.float64)[0]
    columns = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64) * (2 * math.pi / 4)
    assert_close(embedding[:, 2], columns.sin(), atol=1e-5, rtol=0)
    assert_close(embedding[:, 0], torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)  # sin(pi)
    assert_close(embedding[:, 1], -torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)  # cos(pi)


def test_without_the_offset_a_token_is_at_its_far_edge():
    pyramid = Pyramid.of(((1, 4),), (((1, 4),),), device=CPU)
    embedding = embed_tokens(pyramid, 4, dtype=torch.float64, offset=0.0)[0]
    assert embedding[:, 2].tolist() == pytest.approx([1, 0, -1, 0], abs=1e-5)


def test_padding_does_not_change_valid_tokens():
    alone = Pyramid.of(((2, 3),), (((2, 3),),), device=CPU)
    padded = Pyramid.of(((4, 5),), (((2, 3),),), device=CPU)
    valid = embed_tokens(padded, 16, dtype=torch.float64)[~padded.padding_mask]
    assert torch.equal(valid, embed_tokens(alone, 16, dtype=torch.float64)[0])


def test_boxes_are_embedded_one_coordinate_after_the_other():
    boxes = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    embedding = embed_boxes(boxes, 2, dtype=boxes.dtype)
    assert embedding.tolist() == pytest.approx([1, 0, 0, -1, -1, 0, 0, 1], abs=1e-12)
