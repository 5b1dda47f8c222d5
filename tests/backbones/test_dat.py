"""DAT by hand: points, windows, tables, padding, freezing, half precision and export."""

import re

import pytest
import torch
from torch.export import Dim, export
from torch.testing import assert_close

from sparse_detr.backbones import DAT
from sparse_detr.backbones.dat import DeformedKeyAttention, KeyPoints, WindowAttention

NARROW = {"embed_dim": 8, "num_heads": (1, 2, 4, 8), "num_groups": (1, 1, 2, 4), "blocks": ("LS", "LS", "LD", "LD")}
ATTENTION = {"channels": 8, "num_heads": 4, "num_groups": 2, "map_size": (4, 6), "kernel_size": 3}


def narrow(**options):
    torch.manual_seed(0)
    return DAT(**{**NARROW, "image_size": 64, "out_indices": range(4), **options}).double().eval()


def attention(**options):
    torch.manual_seed(0)
    return DeformedKeyAttention(**{**ATTENTION, **options}).double()


def with_offset(model, value):
    """Make the offset net predict `value` (y, x) everywhere: its norm gives a constant, which the last layer scales."""
    with torch.no_grad():
        norm = model.conv_offset[1].norm
        norm.weight.zero_()
        norm.bias.fill_(100.0)  # GELU(100) is 100
        width = norm.bias.numel()
        model.conv_offset[3].weight.copy_(torch.tensor(value)[:, None, None, None].expand(2, width, 1, 1) / 100 / width)
    return model


def points(model, *size):
    found = model.points(torch.randn(1, 8, *size, dtype=torch.float64))
    return found.grid, found.moved[0, 0]


@pytest.mark.parametrize(
    ("convention", "rows", "columns"),
    [("2022", [-0.5, 0.5], [-0.75, -0.25, 0.25, 0.75]), ("2023", [0.0, 2.0], [-2 / 3, 0.0, 2 / 3, 4 / 3])],
)
def test_the_grid_of_2022_is_inside_and_that_of_2023_reaches_beyond_the_map(convention, rows, columns):
    grid, _ = points(attention(convention=convention), 2, 4)
    assert_close(grid[:, 0, 0], torch.tensor(rows).double())
    assert_close(grid[0, :, 1], torch.tensor(columns).double(), rtol=0, atol=1e-6)


TANH = 0.7615941559557649  # of 1


@pytest.mark.parametrize(
    ("convention", "range_factor", "expected"),
    [  # cell (1, 2) of 2 x 4, offset (1, -3); its grid is (0.5, 0.25) in 2022 and (2, 2/3) in 2023
        ("2022", 2.0, (0.5 + 2 * TANH / 2, 0.25 - 2 * 0.99505475368673 / 4)),
        ("2022", 0.0, (1.5, -2.75)),
        ("2022", -1.0, (0.905148253644866, -0.991859724568194)),
        ("2023", 2.0, (2 + 2 * TANH, 2 / 3 - 2 * 0.99505475368673 / 3)),
        ("2023", 0.0, (2.0, 2 / 3)),
        ("2023", -1.0, (1.0, -1.0)),
    ],
)
def test_offsets_are_bounded_as_the_convention_says(convention, range_factor, expected):
    _, moved = points(with_offset(attention(convention=convention, range_factor=range_factor), [1.0, -3.0]), 2, 4)
    assert_close(moved[1, 2], torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_a_range_factor_of_2_moves_a_point_by_less_than_a_key_cell():
    for convention, cell in (("2022", 2 / 6), ("2023", 2 / 5)):
        grid, moved = points(with_offset(attention(convention=convention), [9.0, 9.0]), 6, 6)
        assert_close(moved - grid, torch.full((6, 6, 2), cell).double(), rtol=0, atol=1e-6)


def explicit(model, x):
    """Deformed key attention with loops, of one image: every sample and bias by its own sum over cells."""
    query = model.proj_q(x[None])[0]
    moved = model.points(query[None]).moved[0]
    channels, height, width = x.shape
    heads_of_group, width_of_group = model.num_heads // model.num_groups, channels // model.num_groups
    samples = torch.stack(
        [
            torch.cat(
                [
                    tent_sample(x[g * width_of_group : (g + 1) * width_of_group], point)
                    for g, point in enumerate(moved.flatten(1, 2)[:, key])
                ]
            )
            for key in range(moved.flatten(1, 2).shape[1])
        ],
        1,
    )
    key, value = (layer(samples[None, :, :, None])[0, :, :, 0] for layer in (model.proj_k, model.proj_v))
    inner = model.convention == "2022"
    result = torch.zeros_like(x)
    for head in range(model.num_heads):
        part = slice(head * channels // model.num_heads, (head + 1) * channels // model.num_heads)
        for i in range(height):
            for j in range(width):
                centre = [(i + 0.5) / height * 2 - 1, (j + 0.5) / width * 2 - 1]
                centre = centre if inner else [i / (height - 1) * 2 - 1, j / (width - 1) * 2 - 1]
                targets = moved.flatten(1, 2)[head // heads_of_group]
                bias = [
                    tent_sample(model.rpe_table[head][None], (torch.tensor(centre) - point) / 2) for point in targets
                ]
                logits = query[part, i, j] @ key[part] / (part.stop - part.start) ** 0.5 + torch.cat(bias)
                result[part, i, j] = value[part] @ logits.softmax(0)
    return model.proj_out(result[None])[0]


def tent_sample(map_, point):
    """Sample a map (C, h, w) at a point (y, x) in [-1, 1]: the sum of its cells, weighted with tents."""
    weights = [
        (1 - ((position + 1) / 2 * (size - 1) - torch.arange(size)).abs()).clamp(min=0)
        for position, size in zip(point, map_.shape[1:], strict=True)
    ]
    return torch.einsum("cij,i,j->c", map_, *weights)


@pytest.mark.parametrize("convention", ["2022", "2023"])
@pytest.mark.parametrize(("stride", "size"), [(1, (4, 6)), (1, (5, 3)), (2, (5, 4))])
def test_deformed_key_attention_is_a_sum_over_cells_at_any_size(convention, stride, size):
    model = attention(convention=convention, stride=stride)
    torch.nn.init.normal_(model.conv_offset[3].weight)
    torch.nn.init.normal_(model.rpe_table)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(model(x), torch.stack([explicit(model, image) for image in x]))


def test_a_table_of_the_maps_own_size_gives_the_entry_of_the_displacement():
    """2023, points on cells: the bias is the table at query minus key, as in a window."""
    model = attention(convention="2023", map_size=(3, 4), range_factor=0.0)
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    on_cells = torch.stack([rows / 2 * 2 - 1, columns / 3 * 2 - 1], -1).double().expand(1, 2, 3, 4, 2)
    points = KeyPoints(on_cells[0, 0], on_cells)
    bias = model.bias(torch.zeros(1, 8, 3, 4, dtype=torch.float64), points).view(4, 3, 4, 3, 4)
    for query, key in (((0, 0), (2, 3)), ((2, 1), (0, 3)), ((1, 1), (1, 1))):
        expected = model.rpe_table[:, 2 + query[0] - key[0], 3 + query[1] - key[1]]
        assert_close(bias[(slice(None), *query, *key)], expected)


def test_keys_beyond_the_map_are_the_bias_of_their_projection():
    model = with_offset(attention(convention="2022", range_factor=0.0, position="none"), [9.0, 9.0])
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64)
    expected = model.proj_out(model.proj_v.bias.view(1, 8, 1, 1))
    assert_close(model(x), expected.expand_as(x))


def independent_windows(model, x):
    """Window attention of one image (C, H, W) as full attention of all padded cells, with a mask of same window."""
    channels, height, width = x.shape
    size, shift = model.window_size, model.shift
    rows, columns = (-(-extent // size) * size for extent in (height, width))
    padded = x.new_zeros(rows, columns, channels)
    padded[:height, :width] = x.permute(1, 2, 0)
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    # the window of a cell after a roll by -shift; a wrapped part is a window of its own
    moved = [((axis - shift) % extent) // size for axis, extent in ((i, rows), (j, columns))]
    wrapped = [axis < shift for axis in (i, j)]
    label = torch.stack([*moved, *wrapped], -1).view(rows * columns, 4)
    same = (label[:, None] == label).all(-1)
    qkv = model.proj_qkv(padded.view(-1, channels)).view(-1, 3, model.num_heads, channels // model.num_heads)
    query, key, value = qkv.unbind(1)
    y, z = (axis.flatten()[:, None] - axis.flatten() for axis in (i, j))
    index = ((y + size - 1) * (2 * size - 1) + z + size - 1).clamp(0, (2 * size - 1) ** 2 - 1)
    logits = torch.einsum("qmd,kmd->qkm", query, key) / query.shape[-1] ** 0.5
    logits = (logits + model.relative_position_bias_table[index]).masked_fill(~same[..., None], -torch.inf)
    result = torch.einsum("qkm,kmd->qmd", logits.softmax(1), value).reshape(rows, columns, channels)
    return model.proj_out(result)[:height, :width].permute(2, 0, 1)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(6, 9), (5, 7), (2, 4)])
def test_windows_are_full_attention_within_a_window_of_the_padded_map(shift, size):
    torch.manual_seed(0)
    model = WindowAttention(channels=6, num_heads=2, window_size=3, shift=shift).double()
    torch.nn.init.normal_(model.relative_position_bias_table)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(model(x), torch.stack([independent_windows(model, image) for image in x]))


def test_windows_are_shifted_by_half_of_them_rounded_up():
    blocks = [narrow(window_size=size).stages[0].attns for size in (7, 12)]
    assert [(local.shift, shifted.shift) for local, shifted in blocks] == [(0, 4), (0, 6)]


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (1, 40)])
def test_maps_have_the_cells_that_an_image_reaches(size):
    model = narrow()
    maps = model(torch.randn(1, 3, *size, dtype=torch.float64))
    for name, shape in model.output_shape().items():
        assert maps[name].shape == (1, shape.channels, -(-size[0] // shape.stride), -(-size[1] // shape.stride))


def test_an_image_gives_what_it_gives_padded_to_whole_cells_of_stride_32():
    model, image = narrow(), torch.randn(1, 3, 50, 70, dtype=torch.float64)
    padded = torch.nn.functional.pad(image, (0, 26, 0, 14))
    alone, within = model(image), model(padded)
    for name, map_ in alone.items():
        assert torch.equal(map_, within[name][:, :, : map_.shape[2], : map_.shape[3]])


def test_images_of_a_batch_do_not_see_each_other():
    model, images = narrow(), torch.randn(3, 3, 64, 96, dtype=torch.float64)
    together, alone = model(images), model(images[1:2])
    for name, map_ in alone.items():
        assert_close(together[name][1:2], map_)


def test_only_asked_maps_have_a_norm():
    model = narrow(out_indices=(1, 3))
    assert list(model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))) == ["p1", "p3"] == list(model.output_shape())
    assert {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("norms")} == {"1", "3"}


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, set()), (1, {"patch_proj"}), (2, {"patch_proj", "stages.0", "down_projs.0"})],
)
def test_a_dat_is_frozen_up_to_freeze_at(freeze_at, frozen):
    model = narrow(freeze_at=freeze_at)
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {re.match(r"patch_proj|\w+\.\d", name)[0] for name in names} == frozen


def test_paths_are_dropped_ever_more_often_from_the_first_block_to_the_last():
    rates = [path.p for stage in narrow(drop_path_rate=0.7).stages for path in stage.drop_paths]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_every_parameter_gets_a_gradient_but_the_bias_of_keys_which_softmax_ignores():
    model = narrow().train()
    sum(map_.square().mean() for map_ in model(torch.randn(1, 3, 64, 96, dtype=torch.float64)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 1e-14 or name.endswith("proj_k.bias"), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same_maps_and_exact_grids(dtype):
    exact, half = narrow().float(), narrow().to(dtype)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, expected in exact(image).items():
            assert_close(
                half(image.to(dtype))[name].float(), expected, rtol=0, atol=0.02 if dtype == torch.float16 else 0.2
            )
    grid = half.stages[2].attns[1].points(torch.zeros(1, 32, 4, 90, dtype=dtype)).grid
    assert grid.dtype == torch.float32
    assert_close(grid[0, :, 1], (torch.arange(90) + 0.5) / 45 - 1)


def test_a_dat_is_exported_with_an_open_batch():
    model = narrow(blocks=("S", "L", "D", "D")).float()
    images = torch.randn(3, 3, 70, 97)
    with torch.no_grad():
        exported = export(model, (images[:2],), dynamic_shapes=({0: Dim("count", max=8)},)).module()
        for name, expected in model(images).items():
            assert_close(exported(images)[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": 3}, "2 groups must divide 3 heads, and these 8 channels"),
        ({"num_groups": 3}, "3 groups must divide 4 heads"),
        ({"position": "fixed"}, "position must be table, convolution or none, got 'fixed'"),
        ({"convention": "2021"}, "convention must be '2022' or '2023', got '2021'"),
    ],
)
def test_wrong_options_of_the_attention_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        attention(**options)


def test_one_key_cell_is_refused_where_the_convention_divides_by_zero():
    x = torch.randn(1, 8, 1, 6, dtype=torch.float64)
    assert attention(convention="2022")(x).isfinite().all()
    with pytest.raises(ValueError, match=r"needs 2 key cells along each axis, got \(1, 6\)"):
        attention(convention="2023")(x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": ("ND", "ND", "ND", "DD")}, "blocks must be L, S or D, got N"),
        ({"num_groups": (1, 2)}, "num_groups must have 4 values, one a stage"),
        ({"convention": "2024"}, "convention must be"),
    ],
)
def test_wrong_options_of_the_network_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        narrow(**options)
