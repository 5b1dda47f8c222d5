"""MobileNetV2 against that of torchvision."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch.testing import assert_close
from torchvision.models import mobilenet_v2

from sparse_detr.backbones import MobileNetV2


@pytest.fixture(scope="module")
def networks():
    """Return torchvision's network with random statistics, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = mobilenet_v2(weights=None).features.double().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 2), (module.bias, -1, 1)):
                torch.nn.init.uniform_(values, low, high)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    ours = MobileNetV2(out_features=("stride4", "stride8", "stride16", "stride32")).double()
    missing, unexpected = ours.features.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    return ours, theirs


def test_folded_batch_norm_gives_the_maps_of_torchvision(networks):
    ours, theirs = networks
    x = torch.randn(2, 3, 70, 97, dtype=torch.float64)
    maps, expected, ends = ours.train()(x), x, {3: "stride4", 6: "stride8", 13: "stride16", 18: "stride32"}
    for index, block in enumerate(theirs):
        expected = block(expected)
        if index in ends:
            assert_close(maps[ends[index]], expected)


def test_maps_have_the_shape_that_output_shape_tells(networks):
    ours, _ = networks
    maps = ours(torch.zeros(1, 3, 70, 97, dtype=torch.float64))
    assert list(maps) == list(ours.output_shape())
    for name, shape in ours.output_shape().items():
        assert maps[name].shape == (1, shape.channels, -(-70 // shape.stride), -(-97 // shape.stride))


@pytest.mark.parametrize(("freeze_at", "first_trainable"), [(0, 0), (1, 2), (2, 4), (3, 7), (4, 14), (5, 19)])
def test_freezing_stops_at_a_stride(freeze_at, first_trainable):
    network = MobileNetV2(freeze_at=freeze_at)
    for index, block in enumerate(network.features):
        assert all(p.requires_grad == (index >= first_trainable) for p in block.parameters())


def test_batch_norm_is_frozen_so_that_training_mode_changes_nothing(networks):
    ours, _ = networks
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ours.modules())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in ours.modules())
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    assert torch.equal(ours.train()(x)["stride32"], ours.eval()(x)["stride32"])


def test_gradients_reach_the_parts_that_are_not_frozen(networks):
    ours, _ = networks
    ours.zero_grad()
    sum(x.square().sum() for x in ours(torch.randn(1, 3, 64, 64, dtype=torch.float64)).values()).backward()
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_unknown_maps_are_refused_by_name():
    with pytest.raises(ValueError, match=r"out_features has no maps \['stride64'\]; choose from stride2"):
        MobileNetV2(out_features=("stride64",))
