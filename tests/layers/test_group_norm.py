"""Group normalisation over the valid cells of a map."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import MaskedGroupNorm


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = MaskedGroupNorm(4, 8).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def test_channels_that_do_not_fill_the_groups_are_refused():
    with pytest.raises(ValueError, match="32 groups, but embed_dim is 48; give a multiple of 32"):
        MaskedGroupNorm(32, 48)


def padded_maps(dtype=torch.float64):
    """Make two 5x6 maps of which 3x4 and 5x2 cells are valid, with noise a thousand times as large around them."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 8, 5, 6, generator=generator, dtype=dtype)
    valid = torch.zeros(2, 5, 6, dtype=torch.bool)
    valid[0, :3, :4], valid[1, :, :2] = True, True
    return torch.where(valid[:, None], maps, 1000 * maps), valid


def test_valid_cells_equal_group_norm_of_the_cropped_map(norm):
    maps, valid = padded_maps()
    result = norm(maps, valid)
    assert_close(result[:1, :, :3, :4], norm(maps[:1, :, :3, :4]), atol=1e-12, rtol=0)
    assert_close(result[1:, :, :, :2], norm(maps[1:, :, :, :2]), atol=1e-12, rtol=0)


def test_without_a_mask_or_with_a_full_one_it_is_group_norm(norm):
    maps, valid = padded_maps()
    expected = torch.nn.functional.group_norm(maps, 4, norm.weight, norm.bias)
    assert_close(norm(maps), expected)
    assert_close(norm(maps, torch.ones_like(valid)), expected)


@pytest.mark.parametrize("valid", [None, torch.ones(1, 1, 1, dtype=torch.bool)])
def test_a_group_of_one_value_is_normalised_to_the_bias(valid):
    norm = MaskedGroupNorm(8, 8)
    torch.nn.init.normal_(norm.bias)
    assert_close(norm(torch.randn(1, 8, 1, 1), valid).flatten(), norm.bias)


def test_gradients_of_valid_cells_do_not_reach_padding(norm):
    maps, valid = padded_maps()
    maps.requires_grad_()
    result = norm(maps, valid)
    (result * torch.randn_like(result) * valid[:, None]).sum().backward()
    assert not maps.grad[~valid[:, None].expand_as(maps)].any()
    assert maps.grad[valid[:, None].expand_as(maps)].all()


def test_infinite_and_nan_padding_does_not_change_valid_cells(norm):
    maps, valid = padded_maps()
    broken = maps.masked_fill(~valid[:, None], float("nan"))
    mask = valid[:, None].expand_as(maps)
    assert_close(norm(broken, valid)[mask], norm(maps, valid)[mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_normalised_in_single_precision(dtype):
    """bfloat16 cannot hold every count above 256, and float16 no sum of many thousands."""
    generator = torch.Generator().manual_seed(2)
    maps = (20 + torch.randn(1, 8, 60, 70, generator=generator)).to(dtype)
    valid = torch.ones(1, 60, 70, dtype=torch.bool)
    valid[:, 51:] = False
    norm = MaskedGroupNorm(4, 8)
    expected = norm(maps.float()[:, :, :51])
    assert_close(norm(maps, valid)[:, :, :51].float(), expected, atol=1e-5, rtol=0)
