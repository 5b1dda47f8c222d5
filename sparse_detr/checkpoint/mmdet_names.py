"""Tables for the names of MMDetection 3, and what the configuration in its files says about a model."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from sparse_detr.checkpoint.name_maps import RESNET, Table, count_indices, prefixed
from sparse_detr.checkpoint.official_names import head_owners

_LAYER = r"((?:en|de)coder\.layers\.\d+)\."
_ENCODER_LAYER, _DECODER_LAYER = _LAYER.replace("(?:en|de)", "en"), _LAYER.replace("(?:en|de)", "de")

# norms are numbered in the order in which they run; full attention is `attn` inside `self_attn` and `cross_attn`
COMMON: Table = (
    *prefixed(RESNET, source=r"backbone\.", target="backbone."),
    (r"data_preprocessor\..+", None),
    (_LAYER + r"ffn\.layers\.0\.0\.(.+)", r"\1.ffn.linear1.\2"),
    (_LAYER + r"ffn\.layers\.1\.(.+)", r"\1.ffn.linear2.\2"),
    (_LAYER + r"norms\.0\.(.+)", r"\1.self_attn_norm.\2"),
    (_ENCODER_LAYER + r"norms\.1\.(.+)", r"\1.ffn_norm.\2"),
    (_DECODER_LAYER + r"norms\.1\.(.+)", r"\1.cross_attn_norm.\2"),
    (_DECODER_LAYER + r"norms\.2\.(.+)", r"\1.ffn_norm.\2"),
    (_LAYER + r"(self|cross)_attn\.attn\.(.+)", r"\1.\2_attn.\3"),
)

DEFORMABLE: Table = (
    *COMMON,
    (_ENCODER_LAYER + r"self_attn\.(?!attn\.)(.+)", r"\1.self_attn.\2"),
    (_DECODER_LAYER + r"cross_attn\.(?!attn\.)(.+)", r"\1.cross_attn.\2"),
    (r"level_embed", "tokenizer.level_embed"),
    (r"neck\.convs\.(\d+)\.conv\.(.+)", r"tokenizer.projections.\1.conv.\2"),
    (r"neck\.convs\.(\d+)\.gn\.(.+)", r"tokenizer.projections.\1.norm.\2"),
    (r"memory_trans_fc\.(.+)", r"projection.linear.\1"),
    (r"memory_trans_norm\.(.+)", r"projection.norm.\1"),
)

# what Deformable DETR and DINO do not share
DEFORMABLE_QUERIES: Table = (
    (r"query_embedding\.weight", "queries.embedding.weight"),
    (r"reference_points_fc\.(.+)", r"queries.reference_points.\1"),
    (r"pos_trans_fc\.(.+)", r"queries.start.position_projection.linear.\1"),
    (r"pos_trans_norm\.(.+)", r"queries.start.position_projection.norm.\1"),
)
DINO_QUERIES: Table = (
    (r"query_embedding\.weight", "queries.start.embedding.weight"),
    (r"dn_query_generator\.label_embedding\.weight", "denoising.label_embed.weight"),
    (r"decoder\.ref_point_head\.(.+)", r"decoder.query_position.mlp.\1"),
    (r"decoder\.norm\.(.+)", r"decoder.norm.\1"),
)

# one map, full attention, one head for all layers; `convert_checkpoint` copies the head to every layer
DETR: Table = (
    *COMMON,
    (r"neck\.convs\.0\.conv\.(.+)", r"tokenizer.projection.\1"),
    (r"query_embedding\.weight", "queries.embedding.weight"),
    (r"decoder\.post_norm\.(.+)", r"decoder.norm.\1"),
    (r"bbox_head\.fc_cls\.(.+)", r"decoder_heads.0.class_embed.\1"),
    (r"bbox_head\.reg_ffn\.layers\.0\.0\.(.+)", r"decoder_heads.0.box_embed.layers.0.\1"),
    (r"bbox_head\.reg_ffn\.layers\.1\.(.+)", r"decoder_heads.0.box_embed.layers.1.\1"),
    (r"bbox_head\.fc_reg\.(.+)", r"decoder_heads.0.box_embed.layers.2.\1"),
)

_PROJECTIONS = (
    ("qcontent", "query_content"),
    ("qpos", "query_pos"),
    ("qpos_sine", "query_spatial"),
    ("kcontent", "key_content"),
    ("kpos", "key_pos"),
    ("v", "value"),
    ("out", "out"),
)

CONDITIONAL: Table = (
    *DETR,
    *(
        (_DECODER_LAYER + rf"(self|cross)_attn\.{public}_proj\.(.+)", rf"\1.\2_attn.{ours}_proj.\3")
        for public, ours in _PROJECTIONS
    ),
    (r"decoder\.query_scale\.(.+)", r"decoder.query_position.scale.\1"),
    (r"decoder\.ref_point_head\.(.+)", r"queries.reference_points.\1"),
)


def _levels_and_heads(names: Sequence[str]) -> Table:
    """Return the rows of the levels beyond the backbone's, which are numbered from 0 again, and of the heads."""
    first = count_indices(names, r"neck\.convs\.(\d+)\.")
    levels = tuple(
        (rf"neck\.extra_convs\.{i}\.{public}\.(.+)", rf"tokenizer.projections.{first + i}.{ours}.\1")
        for i in range(count_indices(names, r"neck\.extra_convs\.(\d+)\."))
        for public, ours in (("conv", "conv"), ("gn", "norm"))
    )
    heads = [
        row
        for i, owner in enumerate(head_owners(count_indices(names, r"decoder\.layers\.(\d+)\.")))
        for row in (
            (rf"bbox_head\.cls_branches\.{i}\.(.+)", rf"{owner}.class_embed.\1"),
            *((rf"bbox_head\.reg_branches\.{i}\.{2 * k}\.(.+)", rf"{owner}.box_embed.layers.{k}.\1") for k in range(3)),
        )
    ]
    return (*levels, *heads)


def deformable_table(names: Sequence[str]) -> Table:
    """Return the table of Deformable DETR."""
    return (*DEFORMABLE, *DEFORMABLE_QUERIES, *_levels_and_heads(names))


def dino_table(names: Sequence[str]) -> Table:
    """Return the table of DINO."""
    return (*DEFORMABLE, *DINO_QUERIES, *_levels_and_heads(names))


def detr_table(names: Sequence[str]) -> Table:
    """Return the table of DETR."""
    return DETR


def conditional_table(names: Sequence[str]) -> Table:
    """Return the table of Conditional DETR."""
    return CONDITIONAL


def training_arguments(meta: Any) -> dict[str, Any]:
    """Return what the `meta` of a file says about a model that its weights do not show, by the names of `Evidence`.

    Its `cfg` is the text of a Python file. It is not executed; only literals and calls of `dict` are read.
    """
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    model = _assigned(text, "model") if isinstance(text, str) else None
    if not isinstance(model, dict):
        return {}
    arguments: dict[str, Any] = {}
    if isinstance(model.get("num_queries"), int):
        arguments["num_queries"] = model["num_queries"]
    if isinstance(backbone := model.get("backbone"), dict):
        arguments["dilation"] = tuple(backbone.get("dilations", (1,)))[-1:] == (2,)
    return arguments


def _assigned(text: str, name: str) -> Any:
    """Return the value that a Python text assigns to a name; None if it is not found or no literal."""
    try:
        tree = ast.parse(text)
        found = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]
        ]
        return _literal(found[-1]) if found else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def _literal(node: ast.expr) -> Any:
    """Evaluate literals, and `dict(name=value)` at any depth."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "dict":
        return {str(word.arg): _literal(word.value) for word in node.keywords}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)
