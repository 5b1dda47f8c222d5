"""Tables for the names of Hugging Face's `transformers`, and what its `config.json` says about a model.

Files of versions 4 and 5 have the same names. The tables also know the names inside version 5, which `state_dict()`
gives: `backbone.model` for `backbone.conv_encoder.model`, `o_proj` for `out_proj`, `mlp.fc1` for `fc1`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_detr.checkpoint.name_maps import RESNET, Table, count_indices, prefixed
from sparse_detr.checkpoint.official_names import head_owners
from sparse_detr.errors import UserError

_BODY = r"(?:model\.)?backbone\.(?:conv_encoder\.)?model\."
_LAYER = r"(?:model\.)?((?:en|de)coder\.layers\.\d+)\."
_ENCODER_LAYER, _DECODER_LAYER = _LAYER.replace("(?:en|de)", "en"), _LAYER.replace("(?:en|de)", "de")

# the ResNet of `transformers` itself (`use_timm_backbone=False`); that of timm has torchvision's names
OWN_RESNET: Table = (
    (r"embedder\.embedder\.convolution\.weight", "stem.conv1.weight"),
    (r"embedder\.embedder\.normalization\.(.+)", r"stem.conv1.norm.\1"),
    *(
        row
        for stage in range(4)
        for row in (
            (
                rf"encoder\.stages\.{stage}\.layers\.(\d+)\.shortcut\.convolution\.(.+)",
                rf"res{stage + 2}.\1.shortcut.\2",
            ),
            (
                rf"encoder\.stages\.{stage}\.layers\.(\d+)\.shortcut\.normalization\.(.+)",
                rf"res{stage + 2}.\1.shortcut.norm.\2",
            ),
            *(
                (
                    rf"encoder\.stages\.{stage}\.layers\.(\d+)\.layer\.{conv}\.{part}\.(.+)",
                    rf"res{stage + 2}.\1.conv{conv + 1}.{target}\2",
                )
                for conv in range(3)
                for part, target in (("convolution", ""), ("normalization", "norm."))
            ),
        )
    ),
)

BACKBONE: Table = (
    *prefixed(RESNET, source=_BODY, target="backbone."),
    *prefixed(OWN_RESNET, source=_BODY, target="backbone."),
)

LAYERS: Table = (
    (_LAYER + r"(?:mlp\.)?fc([12])\.(.+)", r"\1.ffn.linear\2.\3"),
    (_LAYER + r"self_attn_layer_norm\.(.+)", r"\1.self_attn_norm.\2"),
    (_LAYER + r"encoder_attn_layer_norm\.(.+)", r"\1.cross_attn_norm.\2"),
    (_LAYER + r"final_layer_norm\.(.+)", r"\1.ffn_norm.\2"),
)


def _full_attention(layer: str, public: str, ours: str) -> Table:
    """Return the rows of full attention, whose three input projections are one entry of ours."""
    return (
        *((layer + rf"{public}\.{letter}_proj\.(.+)", rf"\1.{ours}.in_proj_\2[{i}]") for i, letter in enumerate("qkv")),
        (layer + rf"{public}\.(?:out|o)_proj\.(.+)", rf"\1.{ours}.out_proj.\2"),
    )


DEFORMABLE: Table = (
    *BACKBONE,
    *LAYERS,
    *_full_attention(_DECODER_LAYER, "self_attn", "self_attn"),
    (_ENCODER_LAYER + r"self_attn\.(.+)", r"\1.self_attn.\2"),
    (_DECODER_LAYER + r"encoder_attn\.(.+)", r"\1.cross_attn.\2"),
    (r"(?:model\.)?level_embed", "tokenizer.level_embed"),
    (r"(?:model\.)?input_proj\.(\d+)\.0\.(.+)", r"tokenizer.projections.\1.conv.\2"),
    (r"(?:model\.)?input_proj\.(\d+)\.1\.(.+)", r"tokenizer.projections.\1.norm.\2"),
    (r"(?:model\.)?query_position_embeddings\.weight", "queries.embedding.weight"),
    (r"(?:model\.)?reference_points\.(.+)", r"queries.reference_points.\1"),
    (r"(?:model\.)?enc_output\.(.+)", r"projection.linear.\1"),
    (r"(?:model\.)?enc_output_norm\.(.+)", r"projection.norm.\1"),
    (r"(?:model\.)?pos_trans\.(.+)", r"queries.start.position_projection.linear.\1"),
    (r"(?:model\.)?pos_trans_norm\.(.+)", r"queries.start.position_projection.norm.\1"),
)


# one map, full attention, one head for all layers; `convert_checkpoint` copies the head to every layer
SINGLE_SCALE: Table = (
    *BACKBONE,
    *LAYERS,
    *_full_attention(_ENCODER_LAYER, "self_attn", "self_attn"),
    (r"(?:model\.)?input_projection\.(.+)", r"tokenizer.projection.\1"),
    (r"(?:model\.)?query_position_embeddings\.weight", "queries.embedding.weight"),
    (r"(?:model\.)?decoder\.layernorm\.(.+)", r"decoder.norm.\1"),
    (r"class_labels_classifier\.(.+)", r"decoder_heads.0.class_embed.\1"),
    (r"bbox_predictor\.(.+)", r"decoder_heads.0.box_embed.\1"),
)

DETR: Table = (
    *SINGLE_SCALE,
    *_full_attention(_DECODER_LAYER, "self_attn", "self_attn"),
    *_full_attention(_DECODER_LAYER, "encoder_attn", "cross_attn"),
)

_PROJECTIONS = (
    ("qcontent", "q_content", "query_content"),
    ("qpos", "q_pos", "query_pos"),
    ("qpos_sine", "q_pos_sine", "query_spatial"),
    ("kcontent", "k_content", "key_content"),
    ("kpos", "k_pos", "key_pos"),
    ("v", "v", "value"),
)

CONDITIONAL: Table = (
    *SINGLE_SCALE,
    (r"(?:model\.)?decoder\.query_scale\.(.+)", r"decoder.query_position.scale.\1"),
    (r"(?:model\.)?decoder\.ref_point_head\.(.+)", r"queries.reference_points.\1"),
    *(
        (_DECODER_LAYER + rf"(?:{short}_{in_file}|{attention}\.{in_memory})_proj\.(.+)", rf"\1.{target}.{ours}_proj.\2")
        for short, attention, target in (("sa", "self_attn", "self_attn"), ("ca", "encoder_attn", "cross_attn"))
        for in_file, in_memory, ours in _PROJECTIONS
    ),
    (_DECODER_LAYER + r"self_attn\.(?:out|o)_proj\.(.+)", r"\1.self_attn.out_proj.\2"),
    (_DECODER_LAYER + r"encoder_attn\.(?:out|o)_proj\.(.+)", r"\1.cross_attn.out_proj.\2"),
)


def detr_table(names: Sequence[str]) -> Table:
    """Return the table of DETR."""
    return DETR


def conditional_table(names: Sequence[str]) -> Table:
    """Return the table of Conditional DETR."""
    return CONDITIONAL


def deformable_table(names: Sequence[str]) -> Table:
    """Return the table of Deformable DETR."""
    owners = head_owners(count_indices(names, r"(?:model\.)?decoder\.layers\.(\d+)\."))
    heads = tuple(
        (rf"(?:(?:model\.)?decoder\.)?{public}\.{i}\.(.+)", rf"{owner}.{ours}.\1")
        for i, owner in enumerate(owners)
        for public, ours in (("class_embed", "class_embed"), ("bbox_embed", "box_embed"))
    )
    return (*DEFORMABLE, *heads)


MODEL_TYPES = ("deformable_detr", "detr", "conditional_detr")
# settings of `config.json` that our models have only with one value
FIXED = {"activation_function": "relu", "position_embedding_type": "sine"}


def training_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `config.json` says about a model that its weights do not show, by the names of `Evidence`.

    Raises:
        UserError: our models cannot have such a setting.
    """
    # with it, the decoders of these two normalise the queries between layers, which their papers do not
    fixed = FIXED | ({"auxiliary_loss": False} if config.get("model_type") in ("detr", "conditional_detr") else {})
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise UserError(
                f"config.json has {name} {config[name]!r}, which makes another network; models here have {value!r}"
            )
    backbone = config.get("backbone_config")
    backbone = backbone if isinstance(backbone, Mapping) else {}
    arguments = {
        "num_queries": config.get("two_stage_num_proposals" if config.get("two_stage") else "num_queries"),
        "dilation": bool(config.get("dilation")) or backbone.get("output_stride") == 16,
        "num_heads": config.get("decoder_attention_heads"),
        "num_points": config.get("decoder_n_points"),
    }
    return {name: value for name, value in arguments.items() if value is not None}
