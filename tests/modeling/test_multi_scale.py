"""From backbone maps to tokens: sizes, masks, padding."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_detr.modeling.tokenizers.multi_scale import MultiScaleTokenizer

CHANNELS, STRIDES = (4, 6, 8), (8, 16, 32)


def make_tokenizer(padding="exact", num_levels=4):
    torch.manual_seed(0)
    return MultiScaleTokenizer(
        in_channels=CHANNELS, strides=STRIDES, embed_dim=64, num_levels=num_levels, padding=padding
    ).double()


def make_maps(height, width, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator, dtype=torch.float64)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize(
    ("num_levels", "expected"),
    [
        (3, ((107, 130), (54, 65), (27, 33))),
        (4, ((107, 130), (54, 65), (27, 33), (14, 17))),
        (5, ((107, 130), (54, 65), (27, 33), (14, 17), (7, 9))),
    ],
)
def test_extra_levels_halve_the_map_and_round_up(num_levels, expected):
    tokenizer, maps = make_tokenizer(num_levels=num_levels), make_maps(850, 1040)
    pyramid = tokenizer.pyramid(maps, [(850, 1040)], (850, 1040))
    assert pyramid.spatial_shapes == expected
    assert pyramid.valid_sizes.tolist() == [list(map(list, expected))]


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_the_number_of_tokens_is_that_of_the_pyramid(num_levels):
    tokenizer = make_tokenizer(num_levels=num_levels)
    tokens = tokenizer(make_maps(100, 70, batch=2), [(100, 70), (50, 60)], (100, 70))
    assert tokens.content.shape == (2, tokens.pyramid.num_tokens, 64)
    assert tokens.position.shape == tokens.content.shape
    assert len(tokens.pyramid.spatial_shapes) == num_levels


def test_the_first_extra_level_reads_the_raw_coarsest_map_and_the_second_the_level_before():
    tokenizer, maps = make_tokenizer(num_levels=5), make_maps(128, 96)
    tokens = tokenizer(maps, [(128, 96)], (128, 96))
    fourth, fifth = tokens.pyramid.split(tokens.content)[3:]
    first = tokenizer.projections[3]
    expected = F.group_norm(F.conv2d(maps[2], first.conv.weight, first.conv.bias, 2, 1), 32)
    assert_close(fourth, expected.flatten(2).transpose(1, 2))
    second = tokenizer.projections[4]
    expected = F.group_norm(F.conv2d(expected, second.conv.weight, second.conv.bias, 2, 1), 32)
    assert_close(fifth, expected.flatten(2).transpose(1, 2))


def test_released_masks_are_the_nearest_interpolation_of_the_pixel_mask():
    generator = torch.Generator().manual_seed(3)
    tokenizer = make_tokenizer("released")
    for _ in range(60):
        padded = torch.randint(40, 400, (2,), generator=generator).tolist()
        size = [int(torch.randint(8, edge + 1, (), generator=generator)) for edge in padded]
        pyramid = tokenizer.pyramid(make_maps(*padded), [size], padded)
        mask = torch.ones(1, 1, *padded)
        mask[..., : size[0], : size[1]] = 0
        expected = [F.interpolate(mask, size=shape).flatten() for shape in pyramid.spatial_shapes]
        assert torch.equal(pyramid.padding_mask[0], torch.cat(expected).bool()), (size, padded)


def test_exact_cells_are_valid_if_they_cover_a_pixel_of_the_image():
    tokenizer = make_tokenizer("exact", num_levels=5)
    for height, width in [(1, 1), (8, 16), (9, 17), (33, 64), (65, 100), (120, 119)]:
        pyramid = tokenizer.pyramid(make_maps(128, 128), [(height, width)], (128, 128))
        expected = tuple((-(-height // s), -(-width // s)) for s in (8, 16, 32, 64, 128))
        assert pyramid.valid_sizes.tolist() == [list(map(list, expected))]


def test_exact_valid_tokens_are_those_of_the_image_alone_whatever_padding_holds():
    tokenizer, alone = make_tokenizer("exact", num_levels=5), make_maps(72, 100)
    batched = []
    for x, stride in zip(alone, STRIDES, strict=True):
        rows, columns = -(-130 // stride) - x.shape[2], -(-160 // stride) - x.shape[3]
        batched.append(F.pad(x, (0, columns, 0, rows), value=float("nan")))
    expected = tokenizer(alone, [(72, 100)], (72, 100))
    padded = tokenizer(batched, [(72, 100)], (130, 160))
    valid = ~padded.pyramid.padding_mask
    assert_close(padded.content[valid], expected.content[0], atol=1e-10, rtol=0)
    assert torch.equal(padded.position[valid], expected.position[0])


def test_released_normalisation_reads_padding():
    tokenizer, maps = make_tokenizer("released"), make_maps(128, 128)
    before = tokenizer(maps, [(64, 64)], (128, 128)).content
    maps[0][..., 8:] += 5
    after = tokenizer(maps, [(64, 64)], (128, 128)).content
    assert not torch.allclose(before[0, 0], after[0, 0])


def test_the_position_is_a_sine_embedding_plus_the_level():
    tokenizer = make_tokenizer()
    tokens = tokenizer(make_maps(64, 64), [(64, 64)], (64, 64))
    with torch.no_grad():
        tokenizer.level_embed.zero_()
    plain = tokenizer(make_maps(64, 64), [(64, 64)], (64, 64))
    levels = tokens.pyramid.split(tokens.position - plain.position)
    assert all((level - level[:, :1]).abs().max() < 1e-12 for level in levels)
    assert not torch.allclose(levels[0][:, 0], levels[1][:, 0])


def test_fewer_levels_than_backbone_maps_are_refused():
    with pytest.raises(ValueError, match="num_levels 2 is less than the 3 maps of the backbone"):
        make_tokenizer(num_levels=2)
