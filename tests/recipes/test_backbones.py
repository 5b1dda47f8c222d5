"""Backbones: their description, frozen parts and weights."""

import contextlib
import re

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import SwinTransformer as D2SwinTransformer
from detectron2.modeling import build_backbone
from torch import nn
from torch.export import Dim, export
from torch.testing import assert_close
from torchvision import models
from torchvision.models import resnet50

from sparse_detr.backbones import SwinTransformer
from sparse_detr.checkpoint import convert_checkpoint, match_report
from sparse_detr.config import add_detr_config
from sparse_detr.recipes.backbones import DAT_SIZES, SWIN_SIZES, dat, from_module, resnet, swin, swin_tiny
from tests.meta import meta_device

DESCRIBED = {
    **{f"resnet_{count}_maps": resnet(50, num_maps=count) for count in (1, 3, 4)},
    **{f"resnet{depth}": resnet(depth) for depth in (18, 34, 101, 152)},
    "dilated": resnet(50, num_maps=1, dilation=True),
    **{f"swin_{size}": swin(size, image_size=384) for size in SWIN_SIZES},
    "swin_4_maps": swin("large", num_maps=4),
    **{f"dat_{size}": dat(size) for size in DAT_SIZES},
    "dat_4_maps": dat("base", image_size=384, num_maps=4),
}


def on_meta(backbone):
    with meta_device():
        return instantiate(backbone.config)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_backbone_gives_the_described_maps(name):
    assert from_module(on_meta(DESCRIBED[name]))[1:4] == DESCRIBED[name][1:4]


def test_four_maps_begin_at_stride_4():
    for backbone in (resnet(50, num_maps=4), swin(num_maps=4)):
        with torch.no_grad():
            maps = instantiate(backbone.config).eval()(torch.zeros(1, 3, 70, 97))
        for name, channels, stride in zip(*backbone[1:4], strict=True):
            assert maps[name].shape == (1, channels, -(-70 // stride), -(-97 // stride))
        assert backbone.strides == (4, 8, 16, 32)


def test_windows_are_a_32nd_of_the_images_of_pretraining():
    for image_size, window in ((224, 7), (384, 12)):
        table = on_meta(swin("base", image_size=image_size)).layers[0].blocks[0].attn.relative_position_bias_table
        assert table.shape == ((2 * window - 1) ** 2, 4)


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, set()), (1, {"patch_embed"}), (2, {"patch_embed", "layers.0"})])
def test_a_swin_is_frozen_up_to_freeze_at(freeze_at, frozen):
    names = {name for name, p in on_meta(swin(freeze_at=freeze_at)).named_parameters() if not p.requires_grad}
    assert {re.match(r"patch_embed|layers\.\d", name)[0] for name in names} == frozen


TINY_SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "out_indices": (0, 1)}


@pytest.mark.parametrize("size", [(64, 64), (65, 98), (17, 40), (1, 1)])
def test_a_swin_gives_what_detectron2s_gives_to_the_last_bit(size):
    torch.manual_seed(0)
    theirs, ours = D2SwinTransformer(**TINY_SWIN, drop_path_rate=0.5), SwinTransformer(**TINY_SWIN, drop_path_rate=0.5)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, *size)
    results = []
    for model in (theirs, ours):  # in training, for the gradients
        torch.manual_seed(1)
        maps = list(model.train()(images).values())
        results.append(maps + list(torch.autograd.grad(sum(x.square().sum() for x in maps), model.parameters())))
    for result, expected in zip(*results, strict=True):
        assert torch.equal(result, expected)


def test_a_call_of_a_swin_leaves_no_size_behind_for_another_thread():
    model = SwinTransformer(**TINY_SWIN).eval()
    before = [dict(vars(module)) for module in model.modules()]
    with torch.no_grad():
        model(torch.zeros(1, 3, 33, 64))
    assert [dict(vars(module)) for module in model.modules()] == before


def test_a_swin_is_exported_with_an_open_batch():
    model = SwinTransformer(**TINY_SWIN).eval()
    images = torch.randn(3, 3, 33, 64)
    with torch.no_grad():
        exported = export(model, (images[:2],), dynamic_shapes=({0: Dim("count", max=8)},)).module()
        for name, expected in model(images).items():
            assert torch.equal(exported(images)[name], expected)


def test_sparse_detrs_swin_drops_more_paths_than_dinos():
    assert [backbone.config.drop_path_rate for backbone in (swin_tiny(), swin())] == [0.2, 0.1]


@pytest.mark.parametrize(
    ("backbone", "weights"),
    [
        (resnet(101), "detectron2://ImageNetPretrained/torchvision/R-101.pkl"),
        (resnet(50, num_maps=1, dilation=True), "detectron2://ImageNetPretrained/torchvision/R-50.pkl"),
        (resnet(18), "resnet18_imagenet.pth"),
        (swin_tiny(), "swin_tiny_imagenet.pth"),
        (swin("large", image_size=384), "swin_large_384_imagenet22k.pth"),
        (swin("small", pretraining="imagenet22kto1k"), "swin_small_imagenet22kto1k.pth"),
        (dat(), "dat_tiny_imagenet.pth"),
        (dat("base", image_size=384), "dat_base_384_imagenet.pth"),
    ],
)
def test_a_backbone_names_its_imagenet_weights(backbone, weights):
    assert backbone.weights == weights


def test_unknown_sizes_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no Swin 'huge' .* sizes are tiny, small, base, large"):
        swin("huge")
    with pytest.raises(
        ValueError, match="no Swin with pretraining 'coco'; choose one of imagenet, imagenet22k, imagenet22kto1k"
    ):
        swin(pretraining="coco")
    for size, image_size in (("huge", 224), ("tiny", 384)):
        with pytest.raises(
            ValueError, match=f"no DAT '{size}' for images of {image_size}; sizes are tiny, small, base"
        ):
            dat(size, image_size=image_size)
    with pytest.raises(ValueError, match="convention must be '2022' or '2023', got 2021"):
        dat(convention=2021)
    with pytest.raises(ValueError, match="num_maps must be 1 to 4, got 5"):
        resnet(50, num_maps=5)


def test_a_dilated_resnet_is_that_of_torchvision():
    """As in published DC5 weights, the block without its stride is not dilated; with Detectron2's key it is."""
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    ours = instantiate(resnet(50, num_maps=1, dilation=True).config).eval()
    missing, unexpected = ours.load_state_dict(
        {ours_name(name): value for name, value in theirs.state_dict().items()}, strict=False
    )
    assert not missing
    assert {name.rpartition(".")[2] for name in unexpected} <= {"num_batches_tracked", "weight", "bias"}
    image = torch.rand(1, 3, 70, 97)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(theirs.children())[:-2])(image)
        assert_close(ours(image)["res5"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [18, 34, 152])
def test_a_converted_resnet_of_torchvision_fills_the_recipe_and_gives_its_maps(depth):
    """The numbers are compared for one depth; the others have the same blocks."""
    torch.manual_seed(0)
    compared = depth == 18
    with contextlib.nullcontext() if compared else torch.device("meta"):
        theirs = getattr(models, f"resnet{depth}")(weights=None).eval()
        ours = instantiate(resnet(depth).config).eval()
    file = theirs.state_dict() if compared else {n: constant(n, v) for n, v in theirs.state_dict().items()}
    converted = convert_checkpoint(file).state_dict
    report = match_report(nn.ModuleDict({"backbone": ours}), converted)
    assert (report.missing, report.unexpected, report.misshapen) == ((), (), {})
    if compared:
        nn.ModuleDict({"backbone": ours}).load_state_dict(converted)
        image = torch.rand(1, 3, 70, 97)
        with torch.no_grad():
            assert_close(ours(image)["res5"], nn.Sequential(*list(theirs.children())[:-2])(image), rtol=1e-4, atol=1e-4)


def constant(name, value):
    """Return an expanded tensor of the shape and dtype of `value`, which takes no memory."""
    return torch.tensor(1.0).to(value.dtype).expand(value.shape)


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_cannot_be_dilated(depth):
    with pytest.raises(ValueError, match=f"ResNet-{depth} has basic blocks, .* give dilation=False, or depth 50"):
        resnet(depth, dilation=True)


def test_an_unknown_depth_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="no ResNet of depth 20; choose one of 18, 34, 50, 101, 152"):
        resnet(20)


def ours_name(name):
    """Return Detectron2's name of a tensor of torchvision's ResNet."""
    name = re.sub(r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}", name)
    name = re.sub(r"^(conv1|bn1)", r"stem.\1", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize(
    ("keys", "backbone"),
    [
        (
            ("BACKBONE.NAME", "build_swin_backbone", "SWIN.SIZE", "base", "SWIN.IMAGE_SIZE", 384),
            swin("base", image_size=384),
        ),
        (("BACKBONE.NAME", "build_swin_backbone", "SWIN.NUM_MAPS", 4), swin(num_maps=4)),
        (
            ("RESNETS.DEPTH", 18, "RESNETS.RES2_OUT_CHANNELS", 64, "RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
            resnet(18, freeze_at=0),
        ),
        (
            ("BACKBONE.NAME", "build_dat_backbone", "DAT.SIZE", "base", "DAT.IMAGE_SIZE", 384, "DAT.NUM_MAPS", 4),
            dat("base", image_size=384, num_maps=4),
        ),
        (("BACKBONE.NAME", "build_dat_backbone", "DAT.CONVENTION", "2023"), dat(convention="2023")),
        (("BACKBONE.NAME", "build_resnet_dc5_backbone"), resnet(50, freeze_at=0, num_maps=1, dilation=True)),
    ],
    ids=["swin_base_384", "swin_4_maps", "resnet18", "dat_base_384", "dat_2023", "dc5"],
)
def test_a_backbone_from_yaml_keys_is_that_of_the_recipe(keys, backbone):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_list([f"MODEL.{key}" if i % 2 == 0 else key for i, key in enumerate(keys)])
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    with meta_device():
        module = build_backbone(cfg)
    expected = on_meta(backbone)
    assert from_module(module)[1:4] == backbone[1:4]
    assert str(module) == str(expected)
    assert [getattr(part, "convention", "") for part in module.modules()] == [
        getattr(part, "convention", "") for part in expected.modules()
    ]
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in expected.parameters()]
