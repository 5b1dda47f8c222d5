"""What docs/conventions.md says is so."""

import re
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import embed_tokens
from sparse_detr.modeling.selection import EvenBudget
from sparse_detr.ops import multi_scale_deformable_attention
from tests.modeling.tiny import build, make_pyramid, picture

PAGE = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")
BATCH = [picture(64, 96), picture(100, 130)]


def cells_of_row(name):
    """Return the cells of the row of the page that starts with `name`."""
    return re.search(rf"^\| {name} \| (.*) \|$", PAGE, re.M)[1].split(" | ")


@pytest.fixture(scope="module")
def model():
    return build("sparse", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def output(model):
    with torch.no_grad():
        return model.outputs(BATCH)


def test_tokens_run_from_fine_to_coarse_and_row_by_row_as_the_table_of_the_page_shows():
    cells = make_pyramid(((2, 3), (1, 2))).cells.tolist()
    assert [str(i) for i in range(len(cells))] == cells_of_row("token")
    assert [str(level) for level, _, _ in cells] == cells_of_row("level")
    assert [f"{row}, {column}" for _, row, column in cells] == cells_of_row("row, column")


def test_levels_of_a_model_are_fine_to_coarse(output):
    areas = [height * width for height, width in output.pyramid.spatial_shapes]
    assert areas == sorted(areas, reverse=True)


def test_zero_and_one_are_the_edges_of_the_unpadded_image():
    pyramid = make_pyramid(((2, 4),), ((1, 2),))
    centers = pyramid.centers(torch.float32)[0].view(2, 4, 2)
    assert_close(centers[0, :2], torch.tensor([[0.25, 0.5], [0.75, 0.5]]))
    assert centers[0, 2, 0] > 1  # padding


def test_padding_mask_is_true_on_padding():
    pyramid = make_pyramid(((2, 3),), ((1, 2),))
    assert pyramid.padding_mask[0].view(2, 3).tolist() == [[False, False, True], [True, True, True]]


def test_valid_is_true_on_rows_of_the_image_and_keep_on_chosen_tokens():
    pyramid = make_pyramid(((1, 4),), ((1, 2),), ((1, 4),))
    selection = EvenBudget(keep_ratio=0.5).select(torch.tensor([[4.0, 3, 2, 1], [1.0, 2, 3, 4]]), pyramid)
    assert selection.valid.tolist() == [[True, True, False], [True, True, True]]  # int(2 / 2) + 1 and int(4 / 2) + 1
    assert selection.keep.tolist() == [[True, True, False, False], [False, True, True, True]]


def test_samples_are_at_cell_centres_and_zero_outside():
    value = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)  # two cells in a row
    x = torch.tensor([0.25, 0.5, 0.75, -0.5])
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).view(1, 4, 1, 1, 1, 2)
    read = multi_scale_deformable_attention(value, [(1, 2)], locations, torch.ones(1, 4, 1, 1, 1))
    assert read.flatten().tolist() == [10, 15, 20, 0]


def test_the_row_is_embedded_in_the_first_half_of_the_channels():
    row, column = embed_tokens(make_pyramid(((2, 2),)), 8, dtype=torch.float32)[0].view(2, 2, 2, 4).unbind(2)
    assert_close(row[0, 0], row[0, 1])
    assert_close(column[0, 0], column[1, 0])
    assert not torch.allclose(row[0, 0], row[1, 0])


@pytest.mark.parametrize(("tokens", "share", "kept"), [(10, 0.3, 4), (10, 1, 10), (1, 0.1, 1)])
def test_a_keep_ratio_keeps_the_product_rounded_down_and_one_more(tokens, share, kept):
    selection = EvenBudget(keep_ratio=share).select(torch.rand(1, tokens), make_pyramid(((1, tokens),)))
    assert selection.counts.tolist() == [kept]


def test_tokens_that_are_not_kept_stay_as_they_were(model):
    with torch.no_grad():
        tokens = model.tokenize(model._preprocess(BATCH).tensor, ((64, 96), (100, 130)))
        encoded = model.encode(tokens, 0.3)
    left = ~encoded.selected.selection.keep
    assert torch.equal(encoded.memory.content[left], tokens.content[left])


def test_shapes_have_the_letters_of_the_page(model, output):
    images, tokens = len(BATCH), output.pyramid.num_tokens
    assert output.token_scores.shape == output.attention_map.shape == (images, tokens)
    assert output.predictions.logits.shape == (images, model.queries.num_queries, model.num_classes)
    assert output.predictions.boxes.shape == (images, model.queries.num_queries, 4)
    assert output.selection.indices.shape == (images, int(output.selection.counts.max()))


def test_boxes_are_shares_of_the_unpadded_image_inside_and_corners_in_pixels_outside(model, output):
    boxes = output.predictions.boxes
    assert bool(((boxes >= 0) & (boxes <= 1)).all())
    instances = model.detections(output, BATCH)[0]["instances"]
    corners, scores = instances.pred_boxes.tensor, instances.scores
    assert bool((corners[:, :2] <= corners[:, 2:]).all())
    assert corners[:, 2].max() <= 96
    assert corners[:, 3].max() <= 64
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_true_boxes_become_centre_and_size_in_shares(model):
    targets = model.targets([picture(50, 100, boxes=((0.1, 0.2, 0.5, 0.6),))])
    assert_close(targets[0].boxes.float(), torch.tensor([[0.3, 0.4, 0.4, 0.4]]))


def test_a_batch_is_padded_with_zeros_at_the_right_and_at_the_bottom(model):
    images = model._preprocess(BATCH).tensor
    assert images[0, :, 64:].count_nonzero() == 0
    assert images[0, :, :, 96:].count_nonzero() == 0
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    assert_close(images[0, :, 0, 0], (BATCH[0]["image"][:, 0, 0] - mean) / std)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_keep_single_precision_in_models_of_half_precision(dtype):
    with torch.no_grad():
        predictions = build("sparse", dtype=dtype).eval().outputs(BATCH).predictions
    assert predictions.logits.dtype == dtype
    assert predictions.boxes.dtype == torch.float32


def test_losses_are_in_single_precision_under_autocast(model):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.losses(BATCH)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
