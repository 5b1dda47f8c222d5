"""Folded norms against norms that are computed, in values and gradients; channels last."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock
from torch import nn
from torch.testing import assert_close

from sparse_detr.backbones import MobileNetV2
from sparse_detr.backbones.folding import FoldedConv2d, fold_frozen_norms, use_channels_last


def random_norms(network):
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 2), (module.bias, -1, 1)):
                nn.init.uniform_(values, low, high)
            nn.init.normal_(module.running_mean, std=0.2)
    return network


def tiny_resnet(norm="FrozenBN"):
    torch.manual_seed(0)
    stem = BasicStem(in_channels=3, out_channels=8, norm=norm)
    options = {"num_blocks": 2, "bottleneck_channels": 4, "norm": norm}
    first = ResNet.make_stage(BottleneckBlock, stride_per_block=[1, 1], in_channels=8, out_channels=16, **options)
    second = ResNet.make_stage(BottleneckBlock, stride_per_block=[2, 1], in_channels=16, out_channels=32, **options)
    return random_norms(ResNet(stem, [first, second], out_features=["res2", "res3"], freeze_at=2)).double()


def maps_and_gradients(network, x):
    network.zero_grad()
    maps = network(x)
    sum(x.square().mean() for x in maps.values()).backward()
    return maps, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prepare", [fold_frozen_norms, use_channels_last], ids=["folded", "channels_last"])
def test_a_resnet_has_the_same_maps_and_gradients(prepare):
    plain = tiny_resnet()
    fast = copy.deepcopy(plain)
    prepare(fast)
    x = torch.randn(2, 3, 41, 50, dtype=torch.float64)
    maps, gradients = maps_and_gradients(fast, x)
    expected_maps, expected_gradients = maps_and_gradients(plain, x)
    assert_close(maps, expected_maps)
    assert_close(gradients, expected_gradients)
    assert any("res3" in name for name in gradients)
    assert not any("res2" in name for name in gradients)  # frozen


def test_no_weight_is_renamed_and_every_frozen_norm_of_a_resnet_is_folded():
    network = tiny_resnet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fold_frozen_norms(network)
    assert_close(dict(network.state_dict()), before)
    convolutions = [module for module in network.modules() if isinstance(module, Conv2d)]
    assert all(type(module) is FoldedConv2d for module in convolutions)
    calls = []
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    network(torch.randn(1, 3, 32, 32, dtype=torch.float64))
    assert not calls


def test_norms_that_are_trained_are_not_folded():
    network = tiny_resnet(norm="BN")  # Detectron2 freezes those of frozen stages
    fold_frozen_norms(network)
    assert all(isinstance(module, FoldedConv2d) for module in network.res2.modules() if isinstance(module, Conv2d))
    assert not any(isinstance(module, FoldedConv2d) for module in network.res3.modules())


def test_a_convolution_with_a_bias_keeps_it():
    norm = random_norms(nn.Sequential(FrozenBatchNorm2d(4)))[0]
    conv = Conv2d(3, 4, 3, norm=norm)
    x = torch.randn(2, 3, 6, 7)
    expected = conv(x)
    fold_frozen_norms(nn.Sequential(conv))
    assert_close(conv(x), expected)


def test_the_maps_of_a_mobilenet_have_channels_last_and_the_same_values():
    torch.manual_seed(0)
    plain = MobileNetV2(out_features=("stride4", "stride8"), freeze_at=0).double()
    fast = copy.deepcopy(plain)
    use_channels_last(fast)
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    maps, gradients = maps_and_gradients(fast, x)
    expected_maps, expected_gradients = maps_and_gradients(plain, x)
    assert_close(maps, expected_maps)
    assert_close(gradients, expected_gradients)
    assert maps["stride8"].is_contiguous(memory_format=torch.channels_last)
    assert list(fast.output_shape().values())[0] == ShapeSpec(channels=24, stride=4)
