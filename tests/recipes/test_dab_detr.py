"""The models that the recipes of DAB-DETR make."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model

from sparse_detr.config import add_detr_config
from sparse_detr.modeling.decoder.query_position import LayerScale
from sparse_detr.modeling.selection import KeepAllTokens, TopKSelector
from sparse_detr.recipes import dab_deformable_detr, dab_detr, resnet, sparse_dab_deformable_detr
from tests.modeling.tiny import SIZES, build, patch_backbone, picture, shake

SINGLE = {key: value for key, value in SIZES.items() if key != "num_points"}


def parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in instantiate(config).parameters())


@pytest.mark.parametrize(
    ("recipe", "options", "millions"),
    [
        (dab_detr, {"num_classes": 91}, 43.67),
        (dab_detr, {}, 43.67),
        (dab_deformable_detr, {"num_classes": 91}, 47.41),
        (dab_deformable_detr, {}, 47.39),
    ],
)
def test_the_models_have_as_many_parameters_as_the_public_ones(recipe, options, millions):
    assert parameters(recipe(**options)) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"num_patterns": 3}, 3 * 256),
        ({"activation": "relu"}, -12),
        ({"freeze_centers": True}, -600),
        ({"query_scale": "scalar"}, -255 * 257),
        ({"query_scale": "fixed"}, 6 * 256 - 2 * 256 * 257),
    ],
)
def test_options_add_and_remove_their_parameters(options, more):
    assert parameters(dab_detr(**options)) - parameters(dab_detr()) == more


def test_a_dilated_backbone_halves_the_stride():
    config = dab_detr(backbone=resnet(50, num_maps=1, dilation=True))
    assert (config.tokenizer.stride, config.tokenizer.in_channels) == (16, 2048)
    assert dab_detr().tokenizer.stride == 32


def test_all_layers_of_dab_detr_share_a_head_that_starts_with_the_size_of_the_anchors():
    model = instantiate(dab_detr(backbone=resnet(50, num_maps=1), **SINGLE))
    first, second = model.decoder_heads
    assert first is second
    assert not first.box_embed.linears[-1].bias.any()


def test_the_first_head_of_dab_deformable_starts_with_smaller_boxes_unless_proposals_give_the_size():
    one, two = (
        instantiate(dab_deformable_detr(backbone=patch_backbone(), two_stage=two_stage, **SIZES))
        for two_stage in (False, True)
    )
    assert [head.box_embed.linears[-1].bias.tolist() for head in one.decoder_heads] == [[0, 0, -2, -2], [0] * 4]
    assert not two.decoder_heads[0].box_embed.linears[-1].bias.any()
    assert one.proposal_head is None


def test_two_stage_queries_start_with_detached_tokens_and_have_no_anchors():
    model = build("dab_deformable", two_stage=True)
    assert list(model.queries.parameters()) == []
    assert model.queries.supervise == "chosen"


def test_sparse_detr_on_dab_deformable_is_the_same_model_with_another_selector():
    dense = build("dab_deformable", two_stage=True, encoder_auxiliary_loss=True)
    sparse = build("sparse_dab_deformable")
    assert isinstance(dense.selector, KeepAllTokens)
    assert isinstance(sparse.selector, TopKSelector)
    assert {key for key in sparse.state_dict() if not key.startswith("selector.")} == set(dense.state_dict())
    one_stage = sparse_dab_deformable_detr(two_stage=False)
    assert one_stage.heads.proposals is False


def test_released_and_exact_differ_where_padding_is_read():
    exact, released = (dab_detr(behavior=behavior) for behavior in ("exact", "released"))
    assert (exact.tokenizer.padding, released.tokenizer.padding) == ("exact", "released")
    exact, released = (dab_deformable_detr(behavior=behavior) for behavior in ("exact", "released"))
    assert (exact.decoder.query_position.frame, released.decoder.query_position.frame) == ("image", "padded")


def test_losses_have_the_weights_and_the_epsilon_of_the_public_code():
    for config in (dab_detr(), dab_deformable_detr(), sparse_dab_deformable_detr()):
        criterion = instantiate(config.criterion)
        assert criterion.weights == {"class": 1.0, "bbox": 5.0, "giou": 2.0}
        assert (criterion.iou_eps, criterion.matcher.iou_eps, config.decoder.logit_eps) == (1e-6, 1e-6, 1e-3)
        assert config.postprocess.num_detections == 300


def test_the_factors_of_spatial_queries_are_chosen_by_name():
    assert isinstance(build("dab", query_scale="fixed").decoder.query_position.scale, LayerScale)
    assert build("dab", query_scale="scalar").decoder.query_position.scale.linears[-1].out_features == 1


@pytest.mark.parametrize("name", ["dab", "dab_deformable", "sparse_dab_deformable"])
def test_a_single_decoder_layer_leaves_no_parameter_without_a_gradient(name):
    """Factors of positions are used from the second layer on; without one, data-parallel training would hang."""
    model = build(name, decoder_layers=1)
    sum(model.losses([picture(64, 96)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation must be one of prelu, relu, got 'gelu'"),
        ({"anchor_start": "grid"}, "anchor_start must be one of normal, uniform_centers, uniform, got 'grid'"),
        ({"query_scale": "none"}, "query_scale must be one of elementwise, scalar, fixed, got 'none'"),
        ({"backbone": resnet(50)}, "full attention reads one map, but the backbone gives res3, res4, res5"),
    ],
)
def test_wrong_options_of_dab_detr_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        dab_detr(**options)


def test_options_of_anchors_are_refused_in_two_stages():
    with pytest.raises(ValueError, match="num_patterns and freeze_centers are for learned anchors"):
        dab_deformable_detr(two_stage=True, num_patterns=3)


def test_yaml_and_lazy_dab_detr_have_the_same_parameters():
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "DABDETR", "meta"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnet_backbone", ["res5"]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.DETR.NUM_PATTERNS = 3
    with torch.device("meta"):
        yaml = build_model(cfg)
        lazy = instantiate(dab_detr(num_patterns=3))
    shapes, expected = ({k: v.shape for k, v in model.state_dict().items()} for model in (yaml, lazy))
    assert shapes == expected


def test_a_decoder_with_full_attention_reads_the_tokens_of_a_deformable_encoder():
    """A row of the results has a deformable encoder and a decoder with full attention, from two recipes."""
    config = dab_deformable_detr(backbone=patch_backbone(), **SIZES)
    full = dab_detr(backbone=resnet(50, num_maps=1), **SINGLE)
    config.queries, config.decoder, config.heads = full.queries, full.decoder, full.heads
    config.attention_map = full.attention_map
    torch.manual_seed(0)
    model = instantiate(config).double()
    shake(model)
    images = [picture(64, 96), picture(40, 40, boxes=())]
    batched, alone = model.outputs(images).predictions, model.outputs(images[1:]).predictions
    assert (batched.boxes[1] - alone.boxes[0]).abs().max() < 1e-9
    sum(model.losses(images).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
