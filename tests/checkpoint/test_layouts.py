"""Layouts of DINO, Focus-DETR, DAB-DETR and DAB-Deformable-DETR: names, rows, and the model that a file needs."""

import json
import zlib
from argparse import Namespace

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf
from torchvision.models import resnet18, resnet34

from sparse_detr import recipes
from sparse_detr.checkpoint import convert_checkpoint, match_report
from sparse_detr.checkpoint.coco_classes import COCO_IDS
from sparse_detr.checkpoint.layouts import LAYOUTS
from sparse_detr.checkpoint.name_maps import rename
from sparse_detr.errors import UserError
from tests.golden.cases import FOLDER


def file_of(case):
    """Return weights with the names and shapes of a golden case; names of one weight get one value."""
    rows = json.loads((FOLDER / case / "checkpoint_keys.json").read_text())
    return {name: constant(source, *shape) for name, shape, source in rows}


def constant(tag, *shape):
    """Return an expanded tensor, which takes no memory, of one number that depends on the name."""
    return torch.tensor(float(zlib.crc32(tag.encode()) % 1009)).expand(shape)


def fits(converted):
    """Return whether the described model has exactly the entries of the file."""
    description = converted.description
    backbone = eval(description.backbone, vars(recipes))  # what a reader would paste
    config = getattr(recipes, description.recipe)(backbone=backbone, behavior="released", **description.arguments)
    for key, value in description.overrides.items():
        OmegaConf.update(config, key, value)
    with torch.device("meta"):
        model = instantiate(config)
    report = match_report(model, converted.state_dict)
    assert (report.missing, report.unexpected, report.misshapen, report.untied) == ((), (), {}, ())
    return True


@pytest.mark.parametrize(
    ("layout", "stack", "public", "ours"),
    [
        # norms are numbered in the order of their making
        ("dino", "decoder", "norm2", "self_attn_norm"),
        ("dino", "decoder", "norm1", "cross_attn_norm"),
        ("dab_deformable_detr", "decoder", "norm2", "self_attn_norm"),
        # norms are numbered as they run
        ("dab_detr", "decoder", "norm1", "self_attn_norm"),
        ("dab_detr", "decoder", "norm2", "cross_attn_norm"),
        ("dab_detr", "decoder", "norm3", "ffn_norm"),
        ("dab_detr", "encoder", "norm2", "ffn_norm"),
        ("dab_detr", "decoder", "sa_qcontent_proj", "self_attn.query_content_proj"),
        ("dab_detr", "decoder", "sa_v_proj", "self_attn.value_proj"),
        ("dab_detr", "decoder", "ca_qpos_proj", "cross_attn.query_pos_proj"),
        ("dab_detr", "decoder", "ca_qpos_sine_proj", "cross_attn.query_spatial_proj"),
        ("dab_detr", "decoder", "ca_kpos_proj", "cross_attn.key_pos_proj"),
        ("dab_detr", "decoder", "cross_attn.out_proj", "cross_attn.out_proj"),
        ("detr", "decoder", "multihead_attn.in_proj", "cross_attn.in_proj"),
        ("detr", "decoder", "norm2", "cross_attn_norm"),
        ("conditional_detr", "decoder", "sa_kcontent_proj", "self_attn.key_content_proj"),
        ("conditional_detr", "decoder", "norm1", "self_attn_norm"),
        ("detrex_detr", "decoder", "attentions.0.attn.out_proj", "self_attn.out_proj"),
        ("detrex_detr", "decoder", "attentions.1.attn.out_proj", "cross_attn.out_proj"),
        ("detrex_conditional_detr", "decoder", "attentions.1.key_pos_proj", "cross_attn.key_pos_proj"),
        ("lite_dino", "encoder", "self_attn.query_proj", "self_attn.query_proj"),
        ("lite_dino", "encoder", "linear12", "fine_ffn.linear1"),
        ("lite_dino", "encoder", "linear22", "fine_ffn.linear2"),
        ("lite_dino", "encoder", "norm22", "fine_ffn_norm"),
        ("lite_dino", "encoder", "linear2", "ffn.linear2"),
        ("lite_dino", "decoder", "norm2", "self_attn_norm"),
        ("detrex_dino", "encoder", "attentions.0.value_proj", "self_attn.value_proj"),
        ("detrex_dino", "encoder", "norms.1", "ffn_norm"),
        ("detrex_dino", "decoder", "attentions.0.attn.out_proj", "self_attn.out_proj"),
        ("detrex_dino", "decoder", "attentions.1.value_proj", "cross_attn.value_proj"),
        ("detrex_dino", "decoder", "norms.1", "cross_attn_norm"),
        ("detrex_dino", "decoder", "ffns.0.layers.0.0", "ffn.linear1"),
        ("detrex_dino", "decoder", "ffns.0.layers.1", "ffn.linear2"),
        ("detrex_focus_detr", "encoder", "norm2", "object_attn_norm"),
        ("detrex_focus_detr", "encoder", "attentions.0.attn.out_proj", "object_attn.out_proj"),
        ("detrex_focus_detr", "encoder", "attentions.1.value_proj", "self_attn.value_proj"),
        ("detrex_dab_detr", "encoder", "attentions.0.attn.out_proj", "self_attn.out_proj"),
        ("imfa_dab_detr", "decoder", "sa_qpos_proj", "self_attn.query_pos_proj"),
        ("detrex_dab_detr", "decoder", "attentions.0.key_pos_proj", "self_attn.key_pos_proj"),
        ("detrex_dab_detr", "decoder", "attentions.1.query_pos_sine_proj", "cross_attn.query_spatial_proj"),
    ],
)
def test_a_part_of_a_layer_gets_its_name(layout, stack, public, ours):
    name = f"transformer.{stack}.layers.1.{public}.bias"
    assert rename(name, LAYOUTS[layout].tables([name])) == (f"{stack}.layers.1.{ours}.bias", True)


@pytest.mark.parametrize(
    ("layout", "public", "ours"),
    [
        ("dino", "transformer.tgt_embed.weight", "queries.start.embedding.weight"),
        ("dino", "transformer.enc_out_bbox_embed.layers.2.bias", "proposal_head.box_embed.layers.2.bias"),
        ("dino", "transformer.decoder.ref_point_head.layers.0.bias", "decoder.query_position.mlp.layers.0.bias"),
        ("dino", "backbone.0.layers.2.blocks.17.norm1.bias", "backbone.layers.2.blocks.17.norm1.bias"),
        ("dab_deformable_detr", "tgt_embed.weight", "queries.content.weight"),
        ("dab_deformable_detr", "patterns_embed.weight", "queries.patterns.weight"),
        ("dab_detr", "transformer.encoder.query_scale.layers.0.bias", "encoder.position_scale.layers.0.bias"),
        ("dab_detr", "transformer.decoder.ref_anchor_head.layers.1.bias", "decoder.query_position.size.layers.1.bias"),
        ("dab_detr", "transformer.decoder.layers.1.activation.weight", "decoder.layers.1.ffn.activation.weight"),
        ("dab_detr", "transformer.patterns.weight", "queries.patterns.weight"),
        ("dab_detr", "refpoint_embed.weight", "queries.anchors.logits"),
        ("detr", "query_embed.weight", "queries.embedding.weight"),
        ("detr", "class_embed.bias", "decoder_heads.0.class_embed.bias"),
        (
            *("conditional_detr", "transformer.decoder.ref_point_head.layers.1.bias"),
            "queries.reference_points.layers.1.bias",
        ),
        (
            *("detrex_conditional_detr", "transformer.decoder.query_scale.layers.1.bias"),
            "decoder.query_position.scale.layers.1.bias",
        ),
        (
            "imfa_dab_detr",
            "transformer.encoder.layers.1.sa_v_proj.bias",
            "decoder.encoder.layers.1.self_attn.value_proj.bias",
        ),
        ("imfa_dab_detr", "transformer.encoder.layers.1.norm2.bias", "decoder.encoder.layers.1.ffn_norm.bias"),
        (
            "imfa_dab_detr",
            "transformer.encoder.query_scale.layers.0.bias",
            "decoder.encoder.position_scale.layers.0.bias",
        ),
        ("imfa_dab_detr", "transformer.level_embed", "decoder.encoder.sampler.level_embed"),
        ("imfa_dab_detr", "transformer.dynamic_norm1.bias", "decoder.encoder.sampler.mixing.hidden_norm.bias"),
        ("imfa_dab_detr", "transformer.class_embed.bias", "decoder_heads.0.class_embed.bias"),
        ("pnp_detr", "transformer.sampler.score_pred_net.2.weight", "selector.scorer.mlp.layers.1.weight"),
        ("detrex_pnp_detr", "transformer.sampler.k_proj.bias", "selector.pool.weight_proj.bias"),
        ("detrex_pnp_detr", "transformer.sampler.v_proj.bias", "selector.pool.value_proj.bias"),
        ("detrex_dino", "label_enc.weight", "denoising.label_embed.weight"),
        ("detrex_dino", "backbone.layers.0.blocks.0.attn.qkv.bias", "backbone.layers.0.blocks.0.attn.qkv.bias"),
        ("detrex_focus_detr", "transformer.alpha", "selector.scorer.alpha"),
        ("detrex_focus_detr", "enhance_MCSP_layerlist.3.bias", "proposal_head.class_embed.bias"),
        ("detrex_dab_detr", "transformer.decoder.post_norm_layer.bias", "decoder.norm.bias"),
        ("detrex_dab_detr", "backbone.body.layer4.0.downsample.1.bias", "backbone.res5.0.shortcut.norm.bias"),
        ("detrex_dab_detr", "backbone.res5.0.shortcut.norm.bias", "backbone.res5.0.shortcut.norm.bias"),
    ],
)
def test_a_weight_gets_the_name_of_its_part(layout, public, ours):
    names = [public, "backbone.0.patch_embed.proj.weight"] if "blocks" in public else [public]
    assert rename(public, LAYOUTS[layout].tables(names)) == (ours, True)


def test_levels_beyond_the_backbones_follow_its_own():
    names = [f"neck.convs.{i}.conv.bias" for i in range(3)] + [f"neck.extra_convs.{i}.norm.bias" for i in range(2)]
    tables = LAYOUTS["detrex_dino"].tables(names)
    assert rename("neck.convs.2.conv.bias", tables)[0] == "tokenizer.projections.2.conv.bias"
    assert rename("neck.extra_convs.1.norm.bias", tables)[0] == "tokenizer.projections.4.norm.bias"


@pytest.mark.parametrize(
    ("case", "source", "recipe", "aliases"),
    [
        ("detrex_focus_detr_r50", "detrex_focus_detr", "focus_detr", 80),
        ("detrex_dino_r50", "detrex_dino", "dino", 56),
        ("detrex_dab_detr_r50", "detrex_dab_detr", "dab_detr", 18),
        ("detrex_dab_deformable_detr_r50", "detrex_dab_deformable_detr", "dab_deformable_detr", 36),
        ("official_dino_r50", "dino", "dino", 48),
        ("official_dab_detr_r50", "dab_detr", "dab_detr", 6),
        ("official_anchor_detr_r50", "anchor_detr", "anchor_detr", 0),
        ("detrex_anchor_detr_r50", "detrex_anchor_detr", "anchor_detr", 0),
        ("official_detr_r50", "detr", "detr", 0),
        ("detrex_detr_r50", "detrex_detr", "detr", 0),
        ("official_conditional_detr_r50", "conditional_detr", "conditional_detr", 0),
        ("detrex_conditional_detr_r50", "detrex_conditional_detr", "conditional_detr", 0),
        ("official_imfa_r50", "imfa_dab_detr", "imfa_dab_detr", 8),
        ("official_pnp_detr", "pnp_detr", "pnp_detr", 0),
        ("detrex_pnp_detr_r50", "detrex_pnp_detr", "pnp_detr", 0),
    ],
)
def test_every_entry_of_a_public_file_is_known_and_fills_its_recipe(case, source, recipe, aliases):
    converted = convert_checkpoint({"model": file_of(case)})
    assert (converted.source, converted.description.recipe) == (source, recipe)
    assert (converted.num_aliases, converted.unknown) == (aliases, ())
    assert set(converted.dropped) <= {"criterion.empty_weight"}
    assert fits(converted)


LITE = {"high_levels": 3, "blocks": 3, "key_aware": "everywhere", "narrow_ffn": True}


@pytest.mark.parametrize(
    ("case", "dropped", "expected"),
    [("lite_dino_r50", 0, LITE), ("lite_dino_h2l2_r50", 24, LITE | {"key_aware": "off"})],
)
def test_a_file_of_lite_dino_fills_its_recipe_without_the_projections_that_it_does_not_use(case, dropped, expected):
    converted = convert_checkpoint({"model": file_of(case)})
    assert (converted.source, converted.description.recipe) == ("lite_dino", "lite_dino")
    assert (converted.unknown, len(converted.dropped)) == ((), dropped)
    assert all("query_proj" in name for name in converted.dropped)
    assert converted.description.arguments.items() >= expected.items()
    assert "the number of coarse levels is not in the file" in str(converted)
    assert fits(converted)


def test_the_coarse_levels_of_lite_dino_are_in_the_saved_arguments_only():
    file = {"model": file_of("lite_dino_h2l2_r50"), "args": Namespace(enc_scale=2, num_expansion=3)}
    converted = convert_checkpoint(file)
    assert converted.description.arguments["high_levels"] == 2
    assert "coarse levels" not in str(converted)


@pytest.mark.parametrize(("kept", "blocks"), [((5,), 1), ((2, 5), 2)])
def test_the_layers_with_a_narrow_network_tell_the_number_of_blocks(kept, blocks):
    parts = ("linear12", "linear22", "norm22")
    shapes = {"linear12": (256, 256), "linear22": (256, 256), "norm22": (256,)}
    file = {n: v for n, v in file_of("lite_dino_r50").items() if not any(f".{part}." in n for part in parts)}
    file |= {
        f"transformer.encoder.layers.{i}.{part}.{kind}": constant(part, *(shape if kind == "weight" else (256,)))
        for i in kept
        for part, shape in shapes.items()
        for kind in ("weight", "bias")
    }
    converted = convert_checkpoint(file)
    assert converted.description.arguments["blocks"] == blocks
    assert fits(converted)


def test_a_file_of_lite_dino_without_a_narrow_network_does_not_tell_its_blocks():
    parts = ("linear12", "linear22", "norm22")
    weights = {n: v for n, v in file_of("lite_dino_r50").items() if not any(f".{part}." in n for part in parts)}
    told, untold = (
        convert_checkpoint({"model": weights, **more}) for more in ({"args": Namespace(num_expansion=1)}, {})
    )
    assert told.description.arguments.items() >= {"blocks": 1, "narrow_ffn": False}.items()
    assert "the number of blocks" not in str(told)
    assert untold.description.arguments["blocks"] == 3
    assert "the number of blocks is not in the file" in str(untold)
    assert fits(untold)


def test_keys_with_a_projection_of_their_own_are_named_as_not_supported():
    key = {"transformer.encoder.layers.0.self_attn.key_proj.bias": constant("k", 256)}
    converted = convert_checkpoint(file_of("lite_dino_r50") | key)
    assert "its keys have a projection of their own (proj_key), which is not supported" in str(converted)


def test_a_two_stage_dab_deformable_file_fills_its_recipe():
    file = file_of("detrex_dab_deformable_detr_r50")
    del file["tgt_embed.weight"], file["refpoint_embed.weight"]
    head = {name.replace(".5.", ".6."): value for name, value in file.items() if "_embed.5." in name}
    classes = {
        f"transformer.decoder.{name}": value for name, value in (file | head).items() if name[:11] == "class_embed"
    }
    projection = {
        f"transformer.enc_output{kind}": constant(kind, *shape)
        for kind, shape in {
            ".weight": (256, 256),
            ".bias": (256,),
            "_norm.weight": (256,),
            "_norm.bias": (256,),
        }.items()
    }
    file |= head | classes | projection
    assert len(file) == 634
    converted = convert_checkpoint(file)
    assert converted.description.arguments["two_stage"] is True
    assert "does not hold its number of queries" in str(converted)
    assert fits(converted)


def test_an_official_dab_deformable_file_fills_its_recipe():
    gone = ("decoder.norm", "label_enc", "enc_out", "transformer.tgt_embed")
    file = {name: value for name, value in file_of("official_dino_r50").items() if not any(g in name for g in gone)}
    heads = {
        name: constant(name.split("decoder.")[-1], *value.shape) for name, value in file.items() if "_embed." in name
    }
    scale = {
        f"transformer.decoder.query_scale.layers.{i}.{kind}": constant(f"{i}{kind}", *shape)
        for i in (0, 1)
        for kind, shape in {"weight": (256, 256), "bias": (256,)}.items()
    }
    file |= (
        heads | scale | {"tgt_embed.weight": constant("t", 300, 256), "refpoint_embed.weight": constant("r", 300, 4)}
    )
    converted = convert_checkpoint(file)
    assert (converted.source, converted.unknown) == ("dab_deformable_detr", ())
    assert converted.description.position == (10_000, -0.5)
    assert fits(converted)


@pytest.mark.parametrize("source", ["detrex_dab_detr_r50", "official_dab_detr_r50"])
def test_patterns_fill_their_recipe(source):
    converted = convert_checkpoint(file_of(source) | {"transformer.patterns.weight": constant("patterns", 3, 256)})
    assert converted.description.arguments["num_patterns"] == 3
    assert fits(converted)


def test_detrex_takes_torchvisions_resnet_for_a_dilated_stage():
    """detrex's DC5 configuration for ResNet-50 without patterns has another position temperature than its others."""
    file = {name: value for name, value in file_of("detrex_dab_detr_r50").items() if not name.startswith("backbone")}
    body = file_of("official_dab_detr_r50").items()
    file |= {name.replace("backbone.0", "backbone"): value for name, value in body if name.startswith("backbone")}
    converted = convert_checkpoint(file)
    assert converted.description.backbone == "resnet(50, num_maps=1, dilation=True)"
    assert converted.description.position == (10, 0)
    assert fits(converted)
    patterns = {"transformer.patterns.weight": constant("patterns", 3, 256)}
    assert convert_checkpoint(file | patterns).description.position == (20, 0)


def test_saved_arguments_show_a_dilated_stage():
    file = {"model": file_of("official_dab_detr_r50"), "args": Namespace(dilation=True, pe_temperatureH=20)}
    description = convert_checkpoint(file).description
    assert description.backbone == "resnet(50, num_maps=1, dilation=True)"
    assert not any("DC5" in remark or "temperature" in remark for remark in description.remarks)


def test_a_file_that_does_not_show_a_dilated_stage_asks_and_takes_the_answer():
    file = {"model": file_of("official_dab_detr_r50")}
    asked = convert_checkpoint(file).description
    assert asked.backbone == "resnet(50, num_maps=1)"
    assert any("give --dilated or --not-dilated" in remark for remark in asked.remarks)
    for dilated, call in ((True, "resnet(50, num_maps=1, dilation=True)"), (False, "resnet(50, num_maps=1)")):
        told = convert_checkpoint(file, dilated=dilated).description
        assert told.backbone == call
        assert not any("DC5" in remark for remark in told.remarks)


def test_only_the_file_of_anchor_detr_says_that_the_authors_dilate_by_default():
    for case, expected in (
        ("official_anchor_detr_r50", True),
        ("detrex_anchor_detr_r50", False),
        ("official_dab_detr_r50", False),
    ):
        remarks = convert_checkpoint(file_of(case)).description.remarks
        (asked,) = (remark for remark in remarks if "--not-dilated" in remark)
        assert ("by default it is in the authors' code" in asked) == expected


@pytest.mark.parametrize("model", [resnet18, resnet34])
def test_a_resnet_of_basic_blocks_is_never_dilated(model):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in model().state_dict().items()}
    file = {name: constant(name, *shape) for name, shape in shapes.items()}
    assert "dilation" not in convert_checkpoint(file).description.backbone
    with pytest.raises(UserError, match="only a ResNet-50, 101 or 152 can be dilated"):
        convert_checkpoint(file, dilated=True)


def test_the_number_of_pooled_tokens_shows_a_dilated_stage():
    file, key = file_of("official_pnp_detr"), "transformer.sampler.k_proj"
    calls = []
    for count in (30, 100, 7):
        pool = {f"{key}.weight": constant("w", count, 256), f"{key}.bias": constant("b", count)}
        description = convert_checkpoint(file | pool).description
        calls.append((description.backbone, any("DC5" in remark for remark in description.remarks)))
    plain = "resnet(50, num_maps=1)"
    assert calls == [(plain, False), ("resnet(50, num_maps=1, dilation=True)", False), (plain, True)]


def test_a_scalar_query_scale_is_an_argument():
    file = file_of("official_dab_detr_r50")
    file |= {
        "transformer.decoder.query_scale.layers.1.weight": constant("w", 1, 256),
        "transformer.decoder.query_scale.layers.1.bias": constant("b", 1),
    }
    assert convert_checkpoint(file).description.arguments["query_scale"] == "scalar"


@pytest.mark.parametrize("model", ["detr", "conditional_detr"])
def test_the_layout_tells_whose_weights_the_files_of_detr_hold(model):
    official, detrex = (convert_checkpoint(file_of(f"{origin}_{model}_r50")) for origin in ("official", "detrex"))
    assert "origin" not in official.description.arguments
    assert "origin='detrex'" in str(detrex)
    assert (official.description.backbone, detrex.description.backbone) == (
        "resnet(50, num_maps=1)",
        "resnet(50, freeze_at=1, num_maps=1)",
    )
    assert any("dilated (DC5), and here it is not" in remark for remark in official.description.remarks)
    dilated = {"model": file_of(f"official_{model}_r50"), "args": Namespace(dilation=True)}
    assert convert_checkpoint(dilated).description.backbone == "resnet(50, num_maps=1, dilation=True)"


def counted_rows(case, num_classes=None):
    """Convert a file of DETR whose class rows hold their own number; return the rows of weight and bias."""
    file = file_of(case)
    rows = torch.arange(float(len(file["class_embed.bias"])))
    file |= {"class_embed.bias": rows, "class_embed.weight": rows[:, None].expand(-1, 256)}
    converted = convert_checkpoint(file, num_classes=num_classes)
    heads = [(name, value) for name, value in converted.state_dict.items() if "class_embed" in name]
    assert len(heads) == 12
    weight, bias = (value for name, value in heads if name.startswith("decoder_heads.5."))
    return converted.description.arguments["num_classes"], weight[:, 0].tolist(), bias.tolist()


def test_the_last_row_of_detrs_class_head_is_no_object_and_not_a_class():
    rows = [float(row) for row in range(92)]
    assert counted_rows("official_detr_r50") == (91, rows, rows)
    kept = [float(row) for row in (*COCO_IDS, 91)]
    assert counted_rows("official_detr_r50", num_classes=80) == (80, kept, kept)


def test_80_classes_of_detr_become_91_with_rows_that_are_never_chosen():
    num_classes, weight, bias = counted_rows("detrex_detr_r50", num_classes=91)
    moved = [*COCO_IDS, 91]
    unused = [row for row in range(92) if row not in moved]
    assert num_classes == 91
    assert [weight[row] for row in moved] == [bias[row] for row in moved] == list(range(81))
    assert {weight[row] for row in unused} == {0.0}
    assert {bias[row] for row in unused} == {-1e4}
    assert torch.tensor(bias).half().softmax(-1)[unused].max() == 0


def test_classes_of_a_sigmoid_model_cannot_become_91():
    with pytest.raises(UserError, match="the file has 80 classes and 91 were asked for"):
        convert_checkpoint(file_of("detrex_conditional_detr_r50"), num_classes=91)


@pytest.mark.parametrize("case", ["official_detr_r50", "detrex_dab_detr_r50"])
def test_a_converted_file_of_one_map_is_not_converted_again(case):
    converted = convert_checkpoint(file_of(case))
    with pytest.raises(UserError, match="already has the names of this project"):
        convert_checkpoint(converted.state_dict)


def test_dab_detrs_one_head_serves_every_layer():
    converted = convert_checkpoint(file_of("official_dab_detr_r50"), num_classes=80)
    assert converted.names["class_embed.bias"] == "decoder_heads.0.class_embed.bias"
    assert all(len(converted.state_dict[f"decoder_heads.{i}.class_embed.bias"]) == 80 for i in range(6))


def test_equal_heads_are_shared_and_different_heads_are_not():
    assert convert_checkpoint(file_of("official_dino_r50")).description.arguments["shared_heads"] is True
    assert convert_checkpoint(file_of("detrex_dino_r50")).description.arguments["shared_heads"] is False


@pytest.mark.parametrize(("num_classes", "rows"), [(None, range(91)), (80, COCO_IDS)])
def test_label_embeddings_have_a_row_a_class(num_classes, rows):
    """The authors' files have one more row, which is not used."""
    labels = torch.arange(92.0)[:, None].expand(92, 256)
    file = file_of("official_dino_r50") | {"label_enc.weight": labels}
    kept = convert_checkpoint(file, num_classes=num_classes).state_dict["denoising.label_embed.weight"]
    assert kept[:, 0].tolist() == list(rows)


@pytest.mark.parametrize(
    ("case", "alias"),
    [
        ("detrex_focus_detr_r50", "enhance_MCSP_layerlist.4.bias"),
        ("detrex_focus_detr_r50", "transformer.decoder.bbox_embed.6.layers.0.bias"),
        ("detrex_dab_detr_r50", "transformer.encoder.layers.3.ffns.0.layers.0.1.weight"),
        ("official_dab_detr_r50", "transformer.decoder.bbox_embed.layers.2.bias"),
    ],
)
def test_aliases_that_differ_are_refused(case, alias):
    file = file_of(case)
    with pytest.raises(UserError, match=r"name one weight but differ by up to 0\.5"):
        convert_checkpoint(file | {alias: file[alias] + 0.5})


@pytest.mark.parametrize("wrapper", ["ema_model", "ema_state"])
def test_averaged_weights_are_taken_only_where_there_are_no_others(wrapper):
    file = {f"module.{name}": value for name, value in file_of("official_dino_r50").items()}
    averaged = {name: value + 1 for name, value in file.items()}
    alone = convert_checkpoint({wrapper: averaged})
    assert alone.state_dict["decoder.norm.bias"][0] == file["module.transformer.decoder.norm.bias"][0] + 1
    both = convert_checkpoint({"model": file, wrapper: averaged})
    assert both.state_dict["decoder.norm.bias"][0] == file["module.transformer.decoder.norm.bias"][0]
    assert f"({wrapper}), which are left out" in str(both)


class TestPosition:
    """Temperature and offset of the sine embedding, which no weight shows."""

    @pytest.mark.parametrize(
        ("case", "position"),
        [
            ("detrex_focus_detr_r50", (10_000, -0.5)),
            ("detrex_dino_r50", (10_000, -0.5)),
            ("detrex_dab_detr_r50", (20, 0)),
            ("detrex_dab_deformable_detr_r50", (10_000, -0.5)),
            ("official_dino_r50", (20, 0)),
            ("official_dab_detr_r50", (20, 0)),
            ("official_detr_r50", (10_000, 0)),
            ("detrex_conditional_detr_r50", (10_000, 0)),
            ("official_imfa_r50", (20, -0.5)),
            ("lite_dino_r50", (20, 0)),
            ("deformable_detr_r50", (10_000, -0.5)),
        ],
    )
    def test_the_layout_decides(self, case, position):
        description = convert_checkpoint(file_of(case)).description
        assert description.position == position
        assert f"temperature {position[0]} and offset {position[1]}" in str(description)

    @pytest.mark.parametrize("case", ["detrex_focus_detr_r50", "detrex_dino_r50"])
    def test_where_the_schedule_decides_a_note_points_to_the_file_name(self, case):
        description = convert_checkpoint(file_of(case)).description
        assert any(
            "position_temperature=20 and position_offset=0 for 24 and 36 epochs" in r for r in description.remarks
        )

    def test_saved_arguments_decide(self):
        file = {"model": file_of("official_dino_r50"), "args": Namespace(pe_temperatureH=40)}
        assert convert_checkpoint(file).description.arguments["position_temperature"] == 40

    def test_detrexs_swin_files_have_one_setting(self):
        description = convert_checkpoint(with_swin(file_of("detrex_dino_r50"), width=192, depth=18)).description
        assert description.position == (10_000, -0.5)
        assert len(description.remarks) == 1


def with_swin(file, *, width, depth, window=7):
    """Replace the backbone by the entries that identify a Swin."""
    swin = {
        "backbone.patch_embed.proj.weight": constant("p", width, 3, 4, 4),
        "backbone.layers.0.blocks.0.attn.relative_position_bias_table": constant("t", (2 * window - 1) ** 2, 6),
        **{f"backbone.layers.2.blocks.{i}.norm1.bias": constant("n", 768) for i in range(depth)},
    }
    return {name: value for name, value in file.items() if not name.startswith("backbone.")} | swin


@pytest.mark.parametrize(
    ("width", "depth", "window", "call"),
    [
        (96, 6, 7, 'swin("tiny")'),
        (96, 18, 7, 'swin("small")'),
        (128, 18, 12, 'swin("base", image_size=384)'),
        (192, 18, 12, 'swin("large", image_size=384)'),
    ],
)
def test_width_depth_and_windows_identify_a_swin(width, depth, window, call):
    file = with_swin(file_of("detrex_dino_r50"), width=width, depth=depth, window=window)
    assert convert_checkpoint(file).description.backbone == call


def test_the_maps_and_points_of_imfa_are_counted():
    """The coarsest of three maps becomes tokens; 4 points of 2 offsets and 3 levels each."""
    file = {name: value for name, value in file_of("official_imfa_r50").items() if not name.startswith("projs.0.")}
    for kind in ("weight", "bias"):
        for level in (1, 2, 3):
            file[f"projs.{level - 1}.{kind}"] = file.pop(f"projs.{level}.{kind}")
    file["transformer.level_embed"] = constant("l", 3, 256)
    file["transformer.sampling_pt.layers.1.weight"] = constant("w", 20, 256)
    file["transformer.sampling_pt.layers.1.bias"] = constant("b", 20)
    converted = convert_checkpoint(file)
    assert converted.names["projs.2.bias"] == "tokenizer.projection.bias"
    assert converted.description.backbone == "resnet(50)"
    assert converted.description.arguments["num_points"] == 4
    assert fits(converted)


def test_five_scales_take_four_maps():
    file = file_of("detrex_dino_r50")
    shift = {
        "neck.convs.3.conv.weight": constant("c", 256, 2048, 1, 1),
        "transformer.level_embeds": constant("l", 5, 256),
    }
    description = convert_checkpoint(file | shift).description
    assert description.backbone == "resnet(50, freeze_at=1, num_maps=4)"
    assert description.arguments["num_levels"] == 5
