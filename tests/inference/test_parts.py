"""Parts in inference form, each against the part that it replaces."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from torch import nn
from torch.testing import assert_close

from sparse_detr.backbones import DAT
from sparse_detr.inference import onednn
from sparse_detr.inference.attention import InferenceDeformableAttention
from sparse_detr.inference.conversion import Conversion
from sparse_detr.inference.convolution import FoldedConv, InferenceBackbone, can_fold
from sparse_detr.inference.linear import InferenceFeedForward, PackedLinear
from sparse_detr.inference.optimize import FORMS, PRECISE, _backbone_forms
from sparse_detr.inference.packing import Packing
from sparse_detr.inference.tokenizer import InferenceTokenizer
from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.modeling.heads import ProposalProjection, Proposals
from sparse_detr.modeling.selection import ScoringNetwork, TopDownScorer
from sparse_detr.modeling.tokenizers import MultiScaleTokenizer
from sparse_detr.recipes.backbones import mobilenet_v2, resnet, swin, timm
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((9, 8), (5, 4))
NEEDS_ONEDNN = pytest.mark.skipif(not onednn.has_operators(), reason="this PyTorch has no oneDNN")


def conversion(dtype=None, *, int8=False):
    forms = {**FORMS, **_backbone_forms()}
    return Conversion(forms=forms, precise=PRECISE, dtype=dtype, int8=int8, cast=False, done={})


@pytest.mark.parametrize("first", [True, False], ids=["sample_first", "project_first"])
@pytest.mark.parametrize("smaller", [SHAPES, ((7, 6), (4, 3))], ids=["full", "padded"])
@pytest.mark.parametrize("coordinates", [2, 4])
def test_sampling_before_the_projection_gives_the_same_as_after_it(first, smaller, coordinates, monkeypatch):
    """Many samples lie outside of the map or on padding, where the bias of the projection must not count."""
    torch.manual_seed(0)
    pyramid = make_pyramid(SHAPES, SHAPES, smaller)
    attention = MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=3).double().eval()
    shake(attention, 0.5)
    form = InferenceDeformableAttention.of(attention, conversion())
    monkeypatch.setattr(InferenceDeformableAttention, "samples_first", lambda *_: first)
    query, source = torch.randn(2, 6, 32).double(), torch.randn(2, pyramid.num_tokens, 32).double()
    points = torch.rand(2, 6, 2, coordinates).double() * 1.2 - 0.1
    expected = attention(query, points, source, pyramid)
    assert_close(form(query, points, source, pyramid), expected, atol=1e-12, rtol=0)
    assert_close(form.attend_with_samples(query, points, source, pyramid)[0], expected, atol=1e-12, rtol=0)


def test_few_queries_of_many_tokens_sample_first_and_many_do_not():
    """By hand, divided by 256: 300 x 8 x (11 x 64 + 32) is below 17821 x 256 + 300 x 11 x 64."""
    attention = MultiScaleDeformableAttention(embed_dim=256, num_heads=8, num_levels=4, num_points=4)
    form = InferenceDeformableAttention.of(attention, conversion())
    assert form.samples_first(300, 17_821)
    assert not form.samples_first(900, 17_821)
    assert not form.samples_first(17_821, 17_821)
    assert not form.samples_first(300, 1_000)


@pytest.mark.parametrize("spec", [resnet(depth=50), resnet(depth=18), mobilenet_v2()], ids=["r50", "r18", "mobilenet"])
def test_a_folded_backbone_gives_the_same_maps_and_runs_no_part_of_the_given_one(spec):
    torch.manual_seed(0)
    backbone = instantiate(spec.config).eval()
    for module in backbone.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
            module.weight.data.uniform_(0.3, 0.6)
            module.bias.data.normal_()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(images)
        form = InferenceBackbone(conversion().casting()(backbone), dtype=None)
        assert form.channels_last
        assert not any(hasattr(module, "running_var") for module in form.modules())
        for module in backbone.modules():
            module.register_forward_pre_hook(lambda module, inputs: pytest.fail(f"{type(module).__name__} ran"))
        found = form(images)
    assert list(found) == list(expected)
    for name, maps in expected.items():
        assert_close(found[name], maps, atol=2e-6 * maps.abs().max().item(), rtol=0)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("in_place", [None, False, True], ids=["not_added", "added", "added_in_place"])
def test_a_folded_convolution_adds_and_then_activates(activation, in_place):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    form = FoldedConv(conv, norm, conversion(), activation=activation)
    x = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    added = torch.randn(2, 16, 5, 4).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = norm(conv(x)) + (0 if in_place is None else added)
        expected = {"none": expected, "relu": expected.relu(), "relu6": expected.clamp(0, 6)}[activation]
        kept = added.clone()
        found = form(x) if in_place is None else form(x, added, in_place=in_place)
    assert_close(found, expected, atol=1e-5, rtol=0)
    if not in_place:
        assert torch.equal(added, kept)


@NEEDS_ONEDNN
def test_a_convolution_is_packed_once_for_every_layout_and_right_at_every_size():
    """At sizes from one pixel on, whose layouts differ; the number of packed weights has a limit."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 48, 3, stride=2, padding=1)
    form = FoldedConv(conv, None, conversion())
    weights = []
    for height, width in ((1, 1), (2, 3), (9, 14), (25, 34), (25, 34), (60, 80), (9, 14)):
        x = torch.randn(2, 64, height, width)
        with torch.no_grad():
            assert_close(form(x), conv(x), atol=1e-5, rtol=1e-5)
        weights.append(form._packed.packed_for(x))
    assert weights[3] is weights[4]
    assert weights[2] is weights[6]
    assert 1 <= len({id(weight) for weight in weights}) <= onednn.MOST_LAYOUTS


@NEEDS_ONEDNN
def test_packed_weights_are_forgotten_when_they_become_too_many(monkeypatch):
    monkeypatch.setattr(onednn, "MOST_SIZES", 3)
    packing = onednn.PackedConvolution(
        torch.randn(8, 4, 1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1
    )
    for width in range(1, 12):
        packing.packed_for(torch.empty(1, 4, 1, width))
        assert len(packing._by_size) <= 3


def test_a_norm_with_statistics_of_the_image_cannot_be_folded():
    assert not can_fold(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
    assert not can_fold(nn.Conv2d(4, 4, 3, padding="same"), None)


@pytest.mark.parametrize("number", [0, 1, 5000])
@pytest.mark.parametrize("activation", [None, nn.GELU()], ids=["relu", "gelu"])
def test_a_feed_forward_network_of_many_rows_gives_the_same_in_pieces(number, activation):
    torch.manual_seed(0)
    part = FeedForward(embed_dim=16, feedforward_dim=1024, dropout=0.1, activation=activation).eval()
    form = InferenceFeedForward.of(part, conversion())
    x = torch.randn(1, number, 16)
    with torch.no_grad():
        assert_close(form(x), part(x), atol=1e-5, rtol=0)


def test_a_linear_layer_follows_a_change_of_its_dtype():
    part = nn.Linear(8, 4)
    form, x = PackedLinear(part.weight, part.bias, relu=True), torch.randn(3, 8)
    expected = part(x).relu()
    assert_close(form(x), expected, atol=1e-6, rtol=0)
    assert_close(form.double()(x.double()), expected.double(), atol=1e-6, rtol=0)


def test_rows_are_put_back_where_they_were_taken():
    valid = torch.tensor([[True, False, True], [False, True, True]])
    x = torch.arange(12.0).view(2, 3, 2)
    packing = Packing.of(valid, (2, 3))
    assert packing.take(x).tolist() == [[0, 1], [4, 5], [8, 9], [10, 11]]
    assert torch.equal(packing.put(packing.take(x), fill=-1.0), x.masked_fill(~valid[..., None], -1))
    every = Packing.of(torch.ones(2, 3, dtype=torch.bool), (2, 3))
    assert every.full
    assert torch.equal(every.put(every.take(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_by_row_and_column_are_those_of_all_tokens_to_the_last_bit(dtype):
    pyramid = make_pyramid(((9, 8), (5, 4), (1, 1)), ((9, 8), (5, 4), (1, 1)), ((7, 3), (4, 2), (1, 1)))
    part = MultiScaleTokenizer(in_channels=(4, 4, 4), strides=(8, 16, 32), embed_dim=64, num_levels=3).to(dtype).eval()
    form = InferenceTokenizer.of(part, conversion())
    valid = ~pyramid.padding_mask
    assert torch.equal(form.positions(pyramid)[valid], part.positions(pyramid)[valid])


def small_swin():
    config = swin().config
    config.update(depths=[2, 2, 1, 1], embed_dim=24, drop_path_rate=0.0)
    return instantiate(config)


def small_dat():
    blocks = ("LS", "LS", "LD", "LD")
    options = {"embed_dim": 8, "num_heads": (1, 2, 4, 8), "num_groups": (1, 1, 2, 4), "blocks": blocks}
    return DAT(**options, image_size=64, out_indices=range(4))


def small_timm():
    return instantiate(timm("mobilenetv3_small_050").config)


def with_group_norm():
    return ResNet(BasicStem(norm="GN"), [ResNet.make_stage(BasicBlock, 1, in_channels=64, out_channels=64, norm="GN")])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [small_swin, small_dat, small_timm, with_group_norm])
def test_a_backbone_without_a_form_gives_the_same_maps(make, dtype):
    torch.manual_seed(0)
    backbone = make().eval()
    images = torch.randn(1, 3, 80, 100)
    with torch.no_grad():
        expected, found = (
            backbone(images),
            InferenceBackbone(conversion(dtype).casting()(backbone), dtype=dtype)(images),
        )
    for name, maps in expected.items():
        assert found[name].dtype == (dtype or torch.float32)
        tolerance = (1e-5 if dtype is None else 0.1) * maps.abs().max().item()
        assert_close(found[name].float(), maps, atol=tolerance, rtol=0)


@pytest.mark.parametrize("mean_over", ["real", "all"])
@pytest.mark.parametrize("modulation", ["exact", "released"])
def test_a_scorer_from_coarse_to_fine_gives_the_same_scores(modulation, mean_over):
    torch.manual_seed(0)
    network = ScoringNetwork(embed_dim=32, mean_over=mean_over)
    part = TopDownScorer(network=network, num_levels=2, modulation=modulation).double().eval()
    shake(part, 0.5)
    pyramid = make_pyramid(SHAPES, SHAPES, ((7, 6), (4, 3)))
    tokens = make_tokens(pyramid)
    proposals = Proposals(torch.zeros(2, 92, 4), ~pyramid.padding_mask, None, ProposalProjection(embed_dim=32).double())
    valid = ~pyramid.padding_mask
    found, expected = (scorer(tokens, proposals).values for scorer in (conversion()(part), part))
    assert_close(found[valid], expected[valid], atol=1e-12, rtol=0)
