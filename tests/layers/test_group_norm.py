"""Group normalisation over the real part of a map."""

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


def padded_maps(dtype=torch.float64):
    """Two 5x6 maps of which 3x4 and 5x2 are real; noise a thousand times as large around them."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 8, 5, 6, generator=generator, dtype=dtype)
    real = torch.zeros(2, 5, 6, dtype=torch.bool)
    real[0, :3, :4], real[1, :, :2] = True, True
    return torch.where(real[:, None], maps, 1000 * maps), real


def test_real_positions_equal_group_norm_of_the_cropped_map(norm):
    maps, real = padded_maps()
    result = norm(maps, real)
    assert_close(result[:1, :, :3, :4], norm(maps[:1, :, :3, :4]), atol=1e-12, rtol=0)
    assert_close(result[1:, :, :, :2], norm(maps[1:, :, :, :2]), atol=1e-12, rtol=0)


def test_without_a_mask_or_with_a_full_one_it_is_group_norm(norm):
    maps, real = padded_maps()
    expected = torch.nn.functional.group_norm(maps, 4, norm.weight, norm.bias)
    assert_close(norm(maps), expected)
    assert_close(norm(maps, torch.ones_like(real)), expected)


@pytest.mark.parametrize("real", [None, torch.ones(1, 1, 1, dtype=torch.bool)])
def test_a_group_of_one_value_is_normalised_to_the_bias(real):
    norm = MaskedGroupNorm(8, 8)
    torch.nn.init.normal_(norm.bias)
    assert_close(norm(torch.randn(1, 8, 1, 1), real).flatten(), norm.bias)


def test_gradients_of_real_positions_do_not_reach_padding(norm):
    maps, real = padded_maps()
    maps.requires_grad_()
    result = norm(maps, real)
    (result * torch.randn_like(result) * real[:, None]).sum().backward()
    assert not maps.grad[~real[:, None].expand_as(maps)].any()
    assert maps.grad[real[:, None].expand_as(maps)].all()


def test_infinite_and_nan_padding_stays_out_of_real_positions(norm):
    maps, real = padded_maps()
    broken = maps.masked_fill(~real[:, None], float("nan"))
    mask = real[:, None].expand_as(maps)
    assert_close(norm(broken, real)[mask], norm(maps, real)[mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_normalised_in_single_precision(dtype):
    """A count above 256 does not fit bfloat16, and a sum of thousands does not fit float16."""
    generator = torch.Generator().manual_seed(2)
    maps = (20 + torch.randn(1, 8, 60, 70, generator=generator)).to(dtype)
    real = torch.ones(1, 60, 70, dtype=torch.bool)
    real[:, 51:] = False
    norm = MaskedGroupNorm(4, 8)
    expected = norm(maps.float()[:, :, :51])
    assert_close(norm(maps, real)[:, :, :51].float(), expected, atol=1e-5, rtol=0)
