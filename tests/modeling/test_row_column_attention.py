"""Row-column decoupled attention: against the dense formula, by hand, with padding, on maps of one row or column."""

import math
from dataclasses import replace

import pytest
import torch
from detectron2.config import instantiate
from fvcore.nn import FlopCountAnalysis
from torch.testing import assert_close

from sparse_detr.layers import CoordinateEmbedding, RowColumnAttention
from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.layers.row_column_attention import weighted_sum
from sparse_detr.modeling.queries import GridPoints, LearnedPoints, PatternQueries
from sparse_detr.modeling.tokenizers.row_column import RowColumnTokenizer, axis_centers
from sparse_detr.structures import AllTokens, AxisPositions, TopKTokens
from tests.modeling.tiny import build, make_pyramid, make_tokens, picture, shake

HEADS, DIM, QUERIES = 4, 32, 5


def make_attention(mean_over="valid"):
    torch.manual_seed(0)
    attention = RowColumnAttention(embed_dim=DIM, num_heads=HEADS, mean_over=mean_over).double()
    shake(attention)
    return attention


def make_inputs(shape, *valid_shapes):
    """Make queries for columns and rows, and tokens of one map with random positions."""
    tokens = make_tokens(make_pyramid((shape,), *((valid,) for valid in valid_shapes)), DIM)
    batch_size, (height, width) = tokens.pyramid.batch_size, shape
    generator = torch.Generator().manual_seed(1)
    x, y, *queries = (
        torch.randn(batch_size, rows, DIM, generator=generator, dtype=torch.float64)
        for rows in (width, height, QUERIES, QUERIES)
    )
    return *queries, replace(tokens, axes=AxisPositions(x, y, torch.nn.Identity()))


def dense(attention, query_x, query_y, cells, x, y):
    """Attend to the map (h, w, C) of one image by a weight for every cell, the outer product of those of its axes."""
    w_qx, w_qy, w_kx, w_ky, w_v = attention.in_proj_weight.chunk(5)
    b_qx, b_qy, b_kx, b_ky, b_v = attention.in_proj_bias.chunk(5)
    heads = []
    for part in torch.arange(DIM).chunk(HEADS):
        # the keys of all cells first, then their means, as the paper has it
        keys_x = ((cells + x) @ w_kx.T + b_kx)[..., part].mean(0)
        keys_y = ((cells + y[:, None]) @ w_ky.T + b_ky)[..., part].mean(1)
        weights_x = ((query_x @ w_qx.T + b_qx)[:, part] @ keys_x.T / math.sqrt(len(part))).softmax(-1)
        weights_y = ((query_y @ w_qy.T + b_qy)[:, part] @ keys_y.T / math.sqrt(len(part))).softmax(-1)
        weights = torch.einsum("qh,qw->qhw", weights_y, weights_x)
        assert_close(weights.sum((1, 2)), torch.ones(QUERIES).double())
        heads.append(torch.einsum("qhw,hwd->qd", weights, (cells @ w_v.T + b_v)[..., part]))
    return attention.out_proj(torch.cat(heads, -1))


def close(actual, expected):
    assert_close(actual, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (5, 5), (1, 6), (6, 1), (1, 1)], ids=str)
def test_the_attention_is_that_to_every_cell_with_the_product_of_the_weights_of_its_row_and_column(shape):
    attention, (query_x, query_y, tokens) = make_attention(), make_inputs(shape)
    cells = tokens.content[0].unflatten(0, shape)
    expected = dense(attention, query_x[0], query_y[0], cells, tokens.axes.x[0], tokens.axes.y[0])
    close(attention(query_x, query_y, tokens)[0], expected)


@pytest.mark.parametrize("mean_over", ["valid", "all"])
def test_padding_has_no_weight_and_only_all_cells_count_it_in_the_means(mean_over):
    attention, shape, valid = make_attention(mean_over), (4, 5), (2, 3)
    query_x, query_y, tokens = make_inputs(shape, valid, shape)
    cells, (height, width) = tokens.content[0].unflatten(0, shape), valid
    alone = dense(
        attention,
        query_x[0],
        query_y[0],
        cells[:height, :width],
        tokens.axes.x[0, :width],
        tokens.axes.y[0, :height],
    )
    attended = attention(query_x, query_y, tokens)
    assert torch.allclose(attended[0], alone, atol=1e-12, rtol=0) == (mean_over == "valid")
    loud = tokens.content.masked_fill(tokens.pyramid.padding_mask[..., None], 1e6)
    louder = attention(query_x, query_y, replace(tokens, content=loud))
    assert torch.allclose(louder[0], attended[0], atol=1e-12, rtol=0) == (mean_over == "valid")
    close(louder[1], attended[1])
    # with all cells in the means: their keys differ from those of the valid cells, their weights stay zero
    if mean_over == "all":
        silent = tokens.content.unflatten(1, shape).clone()
        swapped = silent.clone()
        swapped[0, :, width:], swapped[0, height:] = silent[0, :, width:].flip(0), silent[0, height:].flip(1)
        assert not torch.allclose(attention(query_x, query_y, replace(tokens, content=swapped.flatten(1, 2))), attended)


def test_a_weighted_sum_by_hand():
    """Two queries read 1, 2 / 3, 4: the second column of the mean row, and the first row with one third of column 2."""
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None, None]
    weights_x = torch.tensor([[0.0, 1.0], [2 / 3, 1 / 3]])[None, None]
    weights_y = torch.tensor([[0.5, 0.5], [1.0, 0.0]])[None, None]
    assert_close(weighted_sum(weights_x, weights_y, value).flatten(), torch.tensor([3.0, 4 / 3]))


@pytest.mark.parametrize(("height", "width", "stored"), [(3, 7, 3), (7, 3, 3)])
def test_the_longer_axis_is_summed_first(height, width, stored):
    """FLOPs: a sum over the map for every query, then one over what is left, the shorter axis."""
    channels = DIM // HEADS
    arguments = (
        torch.rand(2, HEADS, QUERIES, width),
        torch.rand(2, HEADS, QUERIES, height),
        torch.rand(2, HEADS, channels, height, width),
    )

    class Sum(torch.nn.Module):
        def forward(self, *inputs):
            return weighted_sum(*inputs)

    counted = FlopCountAnalysis(Sum(), arguments).unsupported_ops_warnings(False)
    assert counted.total() == 2 * QUERIES * DIM * (height * width + stored)


def test_embed_dim_must_be_a_multiple_of_the_heads():
    with pytest.raises(ValueError, match="embed_dim 30 must be a multiple of num_heads 4"):
        RowColumnAttention(embed_dim=30, num_heads=4)


def test_the_input_projections_start_together_and_the_output_without_bias():
    torch.manual_seed(0)
    attention = RowColumnAttention(embed_dim=64, num_heads=4)
    bound = math.sqrt(6 / (6 * 64))  # Xavier: fan-in 64, fan-out 5 * 64
    assert 0.98 * bound < attention.in_proj_weight.abs().max() <= bound
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()


def test_centres_of_padding_are_those_of_the_last_valid_column_and_row():
    x, y = axis_centers(make_pyramid(((2, 4),), ((2, 4),), ((1, 2),)), torch.float16)
    assert x.tolist() == [[0.125, 0.375, 0.625, 0.875], [0.25, 0.75, 0.75, 0.75]]
    assert y.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert x.dtype == torch.float32


def test_a_token_has_the_position_of_its_column_and_its_row():
    tokenizer = RowColumnTokenizer(in_channels=3, stride=8, embed_dim=32).double()
    tokens = tokenizer([torch.rand(2, 3, 2, 3).double()], [(16, 24), (9, 11)], (16, 24))
    assert tokens.content.shape == tokens.position.shape == (2, 6, 32)
    close(tokens.position[1, 4], tokens.axes.x[1, 1] + tokens.axes.y[1, 1])
    close(tokens.axes.x[1, 0], tokenizer.embed(torch.tensor(0.25).double()))  # two of three columns are valid


def test_points_are_embedded_row_first_with_half_of_the_channels_each():
    embedding = CoordinateEmbedding(embed_dim=8, num_coordinates=2)
    embedding.mlp = torch.nn.Identity()
    embedding.mlp.dtype = torch.float32
    x, y = 0.2, -0.1
    expected = [sine_embedding(torch.tensor(2 * math.pi * value), 4) for value in (y, x)]
    assert_close(embedding(torch.tensor(y), torch.tensor(x)), torch.cat(expected))


def test_every_pattern_is_at_every_point_first_all_points_with_the_first_pattern():
    queries = PatternQueries(points=LearnedPoints(num_points=3), embed_dim=8, num_patterns=2)
    made = queries(torch.zeros(4, 1, 8), None)
    assert made.content.shape == made.position.shape == (4, 6, 8)
    assert made.content[1, :, 0].tolist() == queries.patterns.weight[[0, 0, 0, 1, 1, 1], 0].tolist()
    assert made.reference_points[2].equal(queries.points.coordinates.repeat(2, 1))
    assert made.position[3, 1].equal(made.position[0, 4])


def test_points_are_coordinates_that_may_leave_the_image():
    queries = PatternQueries(points=LearnedPoints(num_points=2), embed_dim=8, num_patterns=1)
    assert ((queries.points() >= 0) & (queries.points() < 1)).all()
    with torch.no_grad():
        queries.points.coordinates.copy_(torch.tensor([[1.5, -0.5], [0.5, 0.5]]))
    assert queries(torch.zeros(1, 1, 8), None).reference_points[0].tolist() == [[1.5, -0.5], [0.5, 0.5]]


def test_a_point_outside_of_the_image_gives_a_box_at_the_border_and_finite_gradients():
    model = build("anchor")
    with torch.no_grad():
        model.queries.points.coordinates.uniform_(-0.5, 1.5)
    losses = model.losses([picture(96, 64)])
    sum(losses.values()).backward()
    assert torch.isfinite(model.queries.points.coordinates.grad).all()
    assert model.queries.points.coordinates.grad.any(1).all()


def test_a_grid_is_ordered_column_by_column_and_is_not_learned():
    points = GridPoints(num_points=4)
    assert points().tolist() == [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    assert list(points.parameters()) == []
    assert points.state_dict() == {}


def test_a_grid_of_no_square_number_is_refused():
    with pytest.raises(ValueError, match="a square grid has no 300 points; give num_queries=289"):
        GridPoints(num_points=300)


def test_the_encoder_refines_every_token():
    model, inputs = build("anchor"), [picture(96, 64)]
    output = model.outputs(inputs)
    tokens = make_tokens(output.pyramid, 64)
    assert isinstance(output.selection, AllTokens)
    some = TopKTokens.of(torch.tensor([[0]]), torch.tensor([1]), num_tokens=tokens.content.shape[1])
    with pytest.raises(ValueError, match="row-column attention refines every token, but TopKTokens leaves some out"):
        model.encoder(tokens, some, None)


def test_columns_rows_and_queries_get_their_positions_from_the_same_weights():
    """The gradients of a query's position reach the tokenizer; in the parameters the embedding occurs once."""
    model = build("anchor", encoder_layers=0)
    names = [name for name, _ in model.named_parameters() if "embed.mlp" in name]
    assert names == [f"tokenizer.embed.mlp.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    tokens = model.tokenize(torch.rand(1, 3, 64, 96).double(), None)
    fixed = replace(tokens, axes=replace(tokens.axes, x=tokens.axes.x.detach(), y=tokens.axes.y.detach()))
    queries = model.query(model.encode(fixed))
    last = model.decoder(queries, fixed, model.decoder_heads).predictions[-1]
    last.logits.sum().backward()
    assert model.tokenizer.embed.mlp.linears[0].weight.grad.any()


@pytest.mark.parametrize("name", ["anchor"])
def test_modules_keep_the_initial_values_of_pytorch(name):
    """A linear layer of PyTorch starts below 1 / sqrt(C); Xavier's bound is sqrt(3) times as large."""
    from tests.modeling.tiny import MODELS, SIZES, patch_backbone

    torch.manual_seed(0)
    recipe, options = MODELS[name]
    model = instantiate(recipe(backbone=patch_backbone(), **SIZES, **options))
    limit = 64**-0.5
    for linear in (
        model.encoder.layers[0].ffn.linear1,
        model.encoder.layers[0].self_attn.out_proj,
        model.decoder.layers[0].cross_attn.out_proj,
        model.queries.position.mlp.linears[0],
        model.tokenizer.embed.mlp.linears[0],
    ):
        assert 0.95 * limit < linear.weight.abs().max() <= limit
    assert model.queries.patterns.weight.std().item() == pytest.approx(1, abs=0.1)
    assert model.decoder_heads[0].box_embed.linears[-1].bias.tolist() == [0, 0, -2, -2]
    assert model.decoder_heads[0] is model.decoder_heads[1]
