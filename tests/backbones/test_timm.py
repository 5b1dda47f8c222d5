"""Models of timm as backbones: maps for images of any size, frozen parts, weights from a file, clear refusals."""

import json

import pytest
import timm as timm_library
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_backbone
from torch.testing import assert_close

from sparse_detr.backbones import TimmBackbone
from sparse_detr.config import add_detr_config, load_config
from sparse_detr.errors import UserError
from sparse_detr.recipes import dab_detr, deformable_detr, from_module, timm
from tests.meta import meta_device
from tests.modeling.tiny import SIZES, picture

SMALL = "mobilenetv3_small_050"  # batch norms that hold an activation
FLAT = "convnext_atto"  # timm joins the names of its stages, and it has no batch norm
FAMILIES = [  # and the strides of the last three maps
    (SMALL, (8, 16, 32)),
    (FLAT, (8, 16, 32)),
    ("efficientvit_m0", (16, 32, 64)),
    pytest.param("hrnet_w18_small", (8, 16, 32), marks=pytest.mark.slow),  # takes multiples of 32 only
]


@pytest.mark.parametrize(("name", "strides"), FAMILIES)
def test_maps_have_the_described_channels_and_strides_for_any_image_size(name, strides):
    spec = timm(name)
    assert spec.strides == strides
    with meta_device():
        backbone = instantiate(spec.config).eval()
        assert from_module(backbone)[1:4] == spec[1:4]
        for height, width in ((70, 97), (1, 5)):
            maps = backbone(torch.zeros(2, 3, height, width))
            assert list(maps) == list(spec.in_features)
            for feature, channels, stride in zip(*spec[1:4], strict=True):
                assert maps[feature].shape == (2, channels, -(-height // stride), -(-width // stride))


def test_values_are_those_of_timm_where_it_takes_the_size():
    backbone = TimmBackbone(name=SMALL, frozen_norms=False).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for values, expected in zip(backbone(image).values(), backbone.body(image), strict=True):
            assert torch.equal(values, expected)


def test_one_to_all_maps_may_be_asked_for():
    assert timm(SMALL, num_maps=1).in_features == ("stride32",)
    assert timm(SMALL, num_maps=5).strides == (2, 4, 8, 16, 32)
    with pytest.raises(ValueError, match="num_maps must be 1 to 5, got 6"):
        timm(SMALL, num_maps=6)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, set()), (1, {"conv1", "bn1"}), (2, {"conv1", "bn1", "layer1"}), (9, None)]
)
def test_freezing_stops_at_a_stride_as_in_resnet(freeze_at, frozen):
    with meta_device():
        backbone = TimmBackbone(name="resnet18", freeze_at=freeze_at, frozen_norms=False)
    parts = {name.split(".")[1]: p.requires_grad for name, p in backbone.named_parameters()}
    assert {part for part, trained in parts.items() if not trained} == (set(parts) if frozen is None else frozen)


def test_a_map_finer_than_those_asked_for_freezes_its_parts_too():
    with meta_device():
        backbone = TimmBackbone(name=FLAT, num_maps=1)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"stem_0", "stem_1", "stages_0"}


def test_frozen_batch_norm_keeps_its_activation_and_ignores_the_mode():
    torch.manual_seed(0)
    plain = TimmBackbone(name=SMALL, frozen_norms=False)
    frozen = TimmBackbone(name=SMALL)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean, std=0.2)
    missing, unexpected = frozen.load_state_dict(plain.state_dict(), strict=False)
    assert not missing
    assert all(name.endswith("num_batches_tracked") for name in unexpected)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in frozen.modules())
    image = torch.randn(2, 3, 64, 64)
    for values, expected in zip(frozen.train()(image).values(), plain.eval()(image).values(), strict=True):
        assert_close(values, expected, rtol=1e-4, atol=1e-5)


def test_every_trained_parameter_gets_a_gradient():
    """Without it, DistributedDataParallel would stop."""
    backbone = TimmBackbone(name=SMALL)
    sum(values.square().sum() for values in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize(("name", "ending"), [(SMALL, "pth"), (FLAT, "safetensors")])
def test_weights_are_read_from_a_file_as_timm_publishes_them(tmp_path, name, ending):
    torch.manual_seed(0)
    theirs = timm_library.create_model(name).eval()
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"state_dict": theirs.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), path)
    backbone = TimmBackbone(name=name, num_maps=1, checkpoint_path=str(path)).eval()
    image = torch.randn(1, 3, 64, 64)
    expected = theirs.forward_intermediates(image, indices=1, intermediates_only=True)[-1]
    with torch.no_grad():
        assert_close(backbone(image)["stride32"], expected, rtol=1e-4, atol=1e-5)
    with meta_device():  # to count parameters no file is read into them
        assert TimmBackbone(name=name, checkpoint_path=str(path)).body is not None


def test_files_of_weights_that_cannot_serve_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file 'none.pth' .* give checkpoint_path=\"\""):
        TimmBackbone(name=SMALL, checkpoint_path="none.pth")
    torch.save({"state_dict": {"other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"of another model than {SMALL}: it lacks conv_stem.weight"):
        TimmBackbone(name=SMALL, checkpoint_path=str(tmp_path / "other.pth"))
    torch.save({"conv_stem.weight": torch.zeros(3, 3, 3, 3)}, tmp_path / "shape.pth")
    with pytest.raises(UserError, match=f"does not fit {SMALL}: Error"):
        TimmBackbone(name=SMALL, checkpoint_path=str(tmp_path / "shape.pth"))
    (tmp_path / "broken.pth").write_text("no weights")
    with pytest.raises(UserError, match="broken.pth cannot be read as weights"):
        TimmBackbone(name=SMALL, checkpoint_path=str(tmp_path / "broken.pth"))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch16_224", {}, r"has no pyramid: its maps have the strides \(16, 16, 16\)"),
        ("swin_tiny_patch4_window7_224", {}, "cannot take images of any size .* a Swin can with strict_img_size=False"),
        ("crossvit_9_240", {}, r"gives a map \(1, 128, 20, 20\) where its stride 12 means"),
        ("resnet19", {}, "has no model 'resnet19'; near ones: resnet"),
        (SMALL, {"pretrained": True}, "not fetched from a hub here; .* give checkpoint_path=FILE"),
    ],
)
def test_models_that_cannot_serve_are_refused_with_the_reason(name, options, words):
    with pytest.raises(ValueError, match=words):
        timm(name, **options)


def test_a_swin_with_open_image_size_can_serve_and_its_channels_are_put_in_front():
    spec = timm("swin_tiny_patch4_window7_224", strict_img_size=False)
    assert spec[1:4] == (("stride8", "stride16", "stride32"), (192, 384, 768), (8, 16, 32))
    with meta_device():
        maps = instantiate(spec.config)(torch.zeros(1, 3, 70, 97))
    assert maps["stride8"].shape == (1, 192, 9, 13)


def test_looking_at_a_model_draws_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    timm("lcnet_050")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("recipe", [deformable_detr, dab_detr])
def test_pixels_are_normalised_as_the_weights_need(recipe):
    half = timm("mobilenetv4_conv_small_050", num_maps=1)
    assert (half.pixel_mean, half.pixel_std) == ((127.5,) * 3, (127.5,) * 3)
    assert list(recipe(backbone=half).pixel_mean) == [127.5] * 3
    assert timm(SMALL).pixel_mean is None
    assert "pixel_mean" not in recipe(backbone=timm(SMALL, num_maps=1))


def test_a_detector_on_it_trains_and_its_config_is_plain_text():
    config = deformable_detr(backbone=timm(SMALL), **SIZES)
    json.dumps(str(config.backbone))
    model = instantiate(config).train()
    losses = model([picture(70, 97), picture(64, 40)])
    sum(losses.values()).backward()
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert len(model.eval()([picture(70, 97)])) == 1


def yaml_cfg(**keys):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_timm_backbone", 1
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def test_a_backbone_from_yaml_keys_is_that_of_the_recipe(caplog):
    cfg = yaml_cfg(NAME=SMALL, NUM_MAPS=2, FROZEN_NORMS=False)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
    spec = timm(SMALL, num_maps=2, freeze_at=1, frozen_norms=False)
    with meta_device():
        module, expected = build_backbone(cfg), instantiate(spec.config)
    assert not caplog.records
    assert from_module(module)[1:4] == spec[1:4]
    assert str(module) == str(expected)
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in expected.parameters()]


def test_yaml_warns_of_other_pixels_and_asks_for_a_name(caplog):
    with meta_device():
        build_backbone(yaml_cfg(NAME=SMALL))  # Detectron2's default is BGR
    assert "was trained on images with MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in caplog.text
    with pytest.raises(UserError, match="MODEL.TIMM.NAME is not set"):
        build_backbone(yaml_cfg())


def test_a_yaml_training_on_it_does_not_ask_for_the_weights_of_a_resnet():
    keys = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", SMALL]
    assert load_config("configs/Base-DETR.yaml", keys).MODEL.WEIGHTS == ""
