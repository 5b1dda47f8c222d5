"""Conversion of public checkpoints: names, aliases, classes, wrappers."""

from argparse import Namespace

import pytest
import torch

from sparse_detr.checkpoint import convert_checkpoint, match_report
from sparse_detr.checkpoint.coco_classes import COCO_IDS
from sparse_detr.checkpoint.name_maps import RESNET, SWIN, prefixed, rename
from sparse_detr.checkpoint.official_names import SPARSE, TRANSFORMER
from sparse_detr.errors import UserError
from tests.golden.cases import GoldenCase

NO_REFINEMENT = {"decoder.refinement._target_": "sparse_detr.modeling.decoder.deformable.NoRefinement"}


@pytest.fixture(scope="module")
def sparse_file():
    return GoldenCase("sparse_detr_r50_rho_0.1").state_dict()


@pytest.fixture(scope="module")
def binary_file():
    return GoldenCase("deformable_detr_r50_two_stage").state_dict()


def tiny_file(**changes):
    """Return the weights of a one-layer one-stage model under public names, with 2 channels and 91 classes."""
    weights = {
        "transformer.level_embed": torch.zeros(1, 2),
        "input_proj.0.0.weight": torch.ones(2, 3, 1, 1),
        "transformer.encoder.layers.0.norm1.weight": torch.ones(2),
        "transformer.decoder.layers.0.norm1.weight": torch.full((2,), 1.0),
        "transformer.decoder.layers.0.norm2.weight": torch.full((2,), 2.0),
        "class_embed.0.weight": torch.arange(91.0)[:, None].expand(91, 2).clone(),
        "class_embed.0.bias": torch.arange(91.0),
    }
    return weights | changes


@pytest.mark.parametrize(
    ("public", "ours"),
    [
        ("input_proj.3.0.weight", "tokenizer.projections.3.conv.weight"),
        ("input_proj.3.1.bias", "tokenizer.projections.3.norm.bias"),
        ("transformer.enc_mask_predictor.layer1.0.weight", "selector.scorer.network.norm.weight"),
        ("transformer.enc_mask_predictor.layer1.1.bias", "selector.scorer.network.embed.bias"),
        ("transformer.enc_mask_predictor.layer2.4.bias", "selector.scorer.network.mlp.4.bias"),
        ("transformer.encoder.layers.5.norm1.bias", "encoder.layers.5.self_attn_norm.bias"),
        ("transformer.encoder.layers.5.norm2.bias", "encoder.layers.5.ffn_norm.bias"),
        ("transformer.encoder.layers.0.linear2.bias", "encoder.layers.0.ffn.linear2.bias"),
        ("transformer.decoder.layers.1.norm1.bias", "decoder.layers.1.cross_attn_norm.bias"),
        ("transformer.decoder.layers.1.norm2.bias", "decoder.layers.1.self_attn_norm.bias"),
        ("transformer.decoder.layers.1.norm3.bias", "decoder.layers.1.ffn_norm.bias"),
        ("transformer.decoder.layers.1.self_attn.in_proj_bias", "decoder.layers.1.self_attn.in_proj_bias"),
        ("transformer.pos_trans_norm.bias", "queries.start.position_projection.norm.bias"),
    ],
)
def test_a_transformer_weight_gets_the_name_of_its_part(public, ours):
    assert rename(public, ((*TRANSFORMER, *SPARSE),)) == (ours, True)


def test_resnet_names_are_those_of_detectron2():
    from detectron2.modeling.backbone import resnet
    from torchvision.models import resnet50

    torchvision = resnet50()
    stem = resnet.BasicStem(norm="FrozenBN")
    body = resnet.ResNet(stem, resnet.ResNet.make_default_stages(50, norm="FrozenBN", stride_in_1x1=False))
    names = {rename(name, (RESNET,))[0]: value.shape for name, value in torchvision.state_dict().items()}
    names.pop(None)
    assert names == {name: value.shape for name, value in body.state_dict().items()}


def test_swin_names_are_those_of_detectron2():
    from detectron2.modeling.backbone import swin

    body = swin.SwinTransformer(out_indices=(1, 2, 3), drop_path_rate=0.0)
    table = prefixed(SWIN, source=r"backbone\.0\.body\.", target="")
    file = GoldenCase("sparse_detr_swint_rho_0.1").state_dict()
    names = {rename(name, (table,))[0]: value.shape for name, value in file.items() if name.startswith("backbone")}
    assert names == {name: value.shape for name, value in body.state_dict().items()}


def test_heads_go_to_decoder_then_proposals_then_encoder(sparse_file):
    names = convert_checkpoint(sparse_file).names
    assert names["class_embed.5.bias"] == "decoder_heads.5.class_embed.bias"
    assert names["bbox_embed.6.layers.2.bias"] == "proposal_head.box_embed.layers.2.bias"
    assert (
        names["class_embed.7.bias"]
        == names["transformer.encoder.class_embed.0.bias"]
        == "encoder_heads.0.class_embed.bias"
    )
    assert names["transformer.decoder.bbox_embed.11.layers.0.bias"] == "encoder_heads.4.box_embed.layers.0.bias"


def test_every_entry_of_a_public_file_is_known(sparse_file):
    converted = convert_checkpoint(sparse_file)
    assert converted.source == "sparse_detr"
    assert converted.unknown == ()
    assert converted.dropped == ()
    assert len(converted.names) == 760
    assert len(converted.state_dict) == 760 - 136


def test_aliases_that_differ_are_named_with_their_difference(sparse_file):
    alias = "transformer.decoder.class_embed.2.bias"
    damaged = sparse_file | {alias: sparse_file[alias] + 0.25}
    with pytest.raises(UserError, match=r"class_embed\.2\.bias.*class_embed\.2\.bias.*differ by up to 0\.25"):
        convert_checkpoint(damaged)


def test_wrappers_prefixes_and_counters_are_removed():
    file = {
        "model": {f"module.{name}": value for name, value in tiny_file().items()}
        | {"module.total_ops": torch.zeros(1)},
        "optimizer": {"state": {}},
        "args": Namespace(num_queries=300),
        "epoch": 49,
    }
    converted = convert_checkpoint(file)
    assert converted.state_dict.keys() == convert_checkpoint(tiny_file()).state_dict.keys()
    assert converted.dropped == ("module.total_ops",)
    assert converted.description.arguments["num_queries"] == 300


def test_80_classes_take_the_rows_of_the_coco_categories():
    weights = convert_checkpoint(tiny_file(), num_classes=80).state_dict
    rows = weights["decoder_heads.0.class_embed.bias"].tolist()
    assert len(rows) == 80
    assert (rows[0], rows[11], rows[12], rows[79]) == (1, 13, 14, 90)  # person, stop sign, parking meter, toothbrush
    assert weights["decoder_heads.0.class_embed.weight"][:, 0].tolist() == rows


def test_coco_ids_are_those_of_detectron2():
    from detectron2.data.datasets import builtin_meta as meta

    assert list(COCO_IDS) == [c["id"] for c in meta.COCO_CATEGORIES if c["isthing"]]


def test_class_specific_proposals_take_the_category_rows_too(sparse_file):
    weights = convert_checkpoint(sparse_file, num_classes=80).state_dict
    for ours, public in (("proposal_head", "class_embed.6"), ("encoder_heads.4", "class_embed.11")):
        torch.testing.assert_close(weights[f"{ours}.class_embed.bias"], sparse_file[f"{public}.bias"][list(COCO_IDS)])


def test_binary_proposals_keep_foreground_in_row_0(binary_file):
    weights = convert_checkpoint(binary_file, num_classes=80).state_dict
    torch.testing.assert_close(weights["proposal_head.class_embed.bias"], binary_file["class_embed.6.bias"][:80])
    torch.testing.assert_close(
        weights["decoder_heads.5.class_embed.bias"], binary_file["class_embed.5.bias"][list(COCO_IDS)]
    )


def test_binary_proposals_that_share_the_decoder_head_stay_at_91_classes(binary_file):
    tied = {
        name: binary_file[name.replace("class_embed.6", "class_embed.0")] if "class_embed.6" in name else value
        for name, value in binary_file.items()
    }
    assert len(convert_checkpoint(tied).state_dict["proposal_head.class_embed.bias"]) == 91
    with pytest.raises(UserError, match="--classes 91"):
        convert_checkpoint(tied, num_classes=80)


def test_saved_arguments_decide_whether_proposals_are_binary(binary_file):
    told = {"model": binary_file, "args": Namespace(eff_specific_head=True, num_queries=300, rho=0.0)}
    converted = convert_checkpoint(told, num_classes=80)
    assert converted.description.overrides == {"queries.class_agnostic": False}
    weights = converted.state_dict
    torch.testing.assert_close(
        weights["proposal_head.class_embed.bias"], binary_file["class_embed.6.bias"][list(COCO_IDS)]
    )


def test_other_class_counts_are_refused_with_both_numbers():
    with pytest.raises(UserError, match="91 classes and 20 were asked for"):
        convert_checkpoint(tiny_file(), num_classes=20)


def test_the_description_names_recipe_backbone_and_arguments(sparse_file):
    told = {"model": sparse_file, "args": Namespace(eff_specific_head=True, num_queries=300, rho=0.1)}
    description = convert_checkpoint(told).description
    assert (description.recipe, description.backbone) == ("sparse_detr", "resnet(50)")
    assert description.arguments == {
        "num_classes": 91,
        "num_queries": 300,
        "num_levels": 4,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "two_stage": "memory",
        "box_refinement": True,
        "encoder_auxiliary_loss": True,
        "keep_ratio": 0.1,
    }


def test_tied_heads_mean_no_box_refinement():
    weights = convert_checkpoint(GoldenCase("deformable_detr_r50").state_dict()).description.arguments
    assert weights["box_refinement"] is False
    assert weights["num_queries"] == 100
    refined = convert_checkpoint(GoldenCase("deformable_detr_r50_refine").state_dict()).description.arguments
    assert refined["box_refinement"] is True


@pytest.mark.parametrize("depth", [18, 34, 50, 152])
def test_imagenet_resnet_becomes_a_backbone(depth):
    from torchvision import models

    with torch.device("meta"):
        weights = getattr(models, f"resnet{depth}")().state_dict()
    weights = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in weights.items()}
    converted = convert_checkpoint(weights)
    assert (converted.source, converted.description.backbone) == ("torchvision_resnet", f"resnet({depth})")
    assert converted.description.recipe is None
    assert converted.unknown == ()
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(converted.dropped)
    assert all(name.startswith("backbone.") for name in converted.state_dict)


def test_imagenet_swin_becomes_a_backbone():
    swin = {
        "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
        **{f"layers.2.blocks.{i}.attn.qkv.weight": torch.zeros(3, 3) for i in range(6)},
        "layers.0.blocks.0.attn.qkv.weight": torch.zeros(288, 96),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
        "norm.weight": torch.ones(768),
        "head.weight": torch.ones(1000, 768),
    }
    converted = convert_checkpoint({"model": swin})
    assert (converted.source, converted.description.backbone) == ("swin", 'swin("tiny")')
    assert set(converted.dropped) == {"layers.0.blocks.1.attn_mask", "norm.weight", "head.weight"}
    assert "backbone.layers.0.blocks.0.attn.qkv.weight" in converted.state_dict


def test_self_supervised_resnet_of_numbered_children_becomes_a_backbone():
    scrl = {
        "encoder.0.weight": torch.zeros(64, 3, 7, 7),
        "encoder.1.running_var": torch.ones(64),
        "encoder.4.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "encoder.7.2.bn3.bias": torch.zeros(2048),
        "projector.0.weight": torch.zeros(3),
    }
    converted = convert_checkpoint({"online_network_state_dict": scrl, "target_network_state_dict": {}})
    assert converted.source == "scrl"
    assert converted.dropped == ("projector.0.weight",)
    assert set(converted.state_dict) == {
        "backbone.stem.conv1.weight",
        "backbone.stem.conv1.norm.running_var",
        "backbone.res2.0.conv1.weight",
        "backbone.res5.2.conv3.norm.bias",
    }


def test_unknown_entries_are_listed_and_lower_the_known_share():
    converted = convert_checkpoint(tiny_file() | {"label_enc.weight": torch.zeros(3)})
    assert converted.unknown == ("label_enc.weight",)
    assert converted.known_share == pytest.approx(7 / 8)
    assert "label_enc.weight" in str(converted)


@pytest.mark.parametrize("bias", [torch.zeros(90), torch.zeros(92)])
def test_class_heads_of_different_sizes_are_refused(bias):
    with pytest.raises(UserError, match=r"class_embed\.bias has 9[02] class rows where the class heads have 91"):
        convert_checkpoint(tiny_file(**{"class_embed.0.bias": bias}))


def test_a_layer_that_lacks_an_entry_of_all_others_is_refused():
    norms = {f"transformer.encoder.layers.{i}.norm1.bias": torch.zeros(2) for i in range(3)}
    assert convert_checkpoint(tiny_file(**norms)).unknown == ()
    norms["transformer.encoder.layers.1.norm1.bias_new"] = norms.pop("transformer.encoder.layers.1.norm1.bias")
    with pytest.raises(UserError, match=r"encoder\.layers\.1 lacks self_attn_norm\.bias, which all other layers have"):
        convert_checkpoint(tiny_file(**norms))


def test_numbers_that_are_not_finite_are_noted():
    norm = {"transformer.decoder.layers.0.norm1.weight": torch.tensor([1.0, float("nan")])}
    noted = str(convert_checkpoint(tiny_file(**norm)).description)
    assert "1 entries hold NaN or infinite numbers, such as decoder.layers.0.cross_attn_norm.weight" in noted
    assert "NaN" not in str(convert_checkpoint(tiny_file()).description)


def test_a_file_of_another_kind_is_refused_with_its_first_names():
    with pytest.raises(UserError, match=r"2 entries, such as a\.weight, b\.weight"):
        convert_checkpoint({"a.weight": torch.zeros(1), "b.weight": torch.zeros(1)})


def test_a_converted_file_is_refused_as_such():
    with pytest.raises(UserError, match="already has the names"):
        convert_checkpoint({"model": convert_checkpoint(tiny_file()).state_dict})


def test_a_file_without_tensors_is_refused():
    with pytest.raises(UserError, match=r"no weights found: it holds epoch"):
        convert_checkpoint({"epoch": 3})


def test_a_one_stage_file_refines_boxes_only_if_its_decoder_holds_the_heads():
    """The Deformable DETR repository then saves the box heads under the decoder too, the Sparse DETR one does not."""
    sparse_repository = GoldenCase("deformable_detr_r50_refine").state_dict()
    aliases = {
        f"transformer.decoder.{name}": v for name, v in sparse_repository.items() if name.startswith("bbox_embed")
    }
    assert convert_checkpoint(sparse_repository).description.overrides == NO_REFINEMENT
    assert convert_checkpoint(sparse_repository | aliases).description.overrides == {}


def test_a_single_scale_file_asks_for_a_single_scale_backbone():
    from detectron2.config import instantiate

    from sparse_detr import recipes

    body = GoldenCase("deformable_detr_r50").state_dict()
    one_level = {
        name: value
        for name, value in body.items()
        if not name.startswith("input_proj.") and "sampling_offsets" not in name and "attention_weights" not in name
    }
    one_level |= {"transformer.level_embed": torch.zeros(1, 256), "input_proj.0.0.weight": torch.zeros(256, 2048, 1, 1)}
    converted = convert_checkpoint(one_level)
    assert converted.description.backbone == "resnet(50, num_maps=1)"
    config = recipes.deformable_detr(
        backbone=recipes.resnet(50, num_maps=1), behavior="released", **converted.description.arguments
    )
    report = match_report(instantiate(config), converted.state_dict)
    assert report.unexpected == ()
    assert report.misshapen == {}
    assert all("sampling_offsets" in n or "attention_weights" in n or "projections.0" in n for n in report.missing)
