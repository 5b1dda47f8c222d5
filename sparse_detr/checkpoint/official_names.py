"""Tables for the names in checkpoints of the papers' authors, one a model.

All their code descends from Deformable DETR, so the tables share most rows.
"""

import re
from collections.abc import Sequence

from sparse_detr.checkpoint.name_maps import RESNET, SWIN, Table, count_indices, prefixed

SCORING_NETWORK: Table = (
    (r"transformer\.enc_mask_predictor\.layer1\.0\.(.+)", r"selector.scorer.network.norm.\1"),
    (r"transformer\.enc_mask_predictor\.layer1\.1\.(.+)", r"selector.scorer.network.embed.\1"),
    (r"transformer\.enc_mask_predictor\.layer2\.(\d)\.(.+)", r"selector.scorer.network.mlp.\1.\2"),
)

PROPOSALS: Table = (
    (r"transformer\.enc_output\.(.+)", r"projection.linear.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"projection.norm.\1"),
)

TRANSFORMER: Table = (
    (r"transformer\.level_embed", "tokenizer.level_embed"),
    (r"input_proj\.(\d+)\.0\.(.+)", r"tokenizer.projections.\1.conv.\2"),
    (r"input_proj\.(\d+)\.1\.(.+)", r"tokenizer.projections.\1.norm.\2"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+\.(?:self|cross)_attn\..+)", r"\1"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.(linear[12]\..+)", r"\1.ffn.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm1\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm2\.(.+)", r"\1.ffn_norm.\2"),
    # the public decoder layer runs self-attention, norm2, cross-attention, norm1, feed-forward network, norm3
    (r"transformer\.(decoder\.layers\.\d+)\.norm2\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norm1\.(.+)", r"\1.cross_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norm3\.(.+)", r"\1.ffn_norm.\2"),
)

SPARSE: Table = (
    *SCORING_NETWORK,
    *PROPOSALS,
    (r"query_embed\.weight", "queries.embedding.weight"),
    (r"transformer\.reference_points\.(.+)", r"queries.reference_points.\1"),
    (r"transformer\.pos_trans\.(.+)", r"queries.start.position_projection.linear.\1"),
    (r"transformer\.pos_trans_norm\.(.+)", r"queries.start.position_projection.norm.\1"),
)

# of tokens of fine levels in Lite DETR
NARROW_FFN: Table = (
    (r"transformer\.(encoder\.layers\.\d+)\.linear([12])2\.(.+)", r"\1.fine_ffn.linear\2.\3"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm22\.(.+)", r"\1.fine_ffn_norm.\2"),
)
_ATTENTION = r"transformer\.(?:en|de)coder\.layers\.\d+\.(?:self|cross)_attn\."

# positions of queries as boxes, since DAB-DETR
QUERY_POSITION: Table = (
    (r"transformer\.decoder\.ref_point_head\.(.+)", r"decoder.query_position.mlp.\1"),
    (r"transformer\.decoder\.query_scale\.(.+)", r"decoder.query_position.scale.\1"),
    (r"transformer\.decoder\.ref_anchor_head\.(.+)", r"decoder.query_position.size.\1"),
    (r"transformer\.decoder\.norm\.(.+)", r"decoder.norm.\1"),
)

DINO: Table = (
    *PROPOSALS,
    *QUERY_POSITION,
    (r"transformer\.tgt_embed\.weight", "queries.start.embedding.weight"),
    (r"transformer\.enc_out_class_embed\.(.+)", r"proposal_head.class_embed.\1"),
    (r"transformer\.enc_out_bbox_embed\.(.+)", r"proposal_head.box_embed.\1"),
    (r"label_enc\.weight", "denoising.label_embed.weight"),
)

ANCHORS: Table = (
    (r"(?:refpoint_embed|anchor_box_embed)\.weight", "queries.anchors.logits"),
    (r"tgt_embed\.weight", "queries.content.weight"),
    (r"(?:transformer\.patterns|patterns_embed)\.weight", "queries.patterns.weight"),
)

# one map, full attention, one head for all layers; `convert_checkpoint` copies the head to every layer
SINGLE_SCALE: Table = (
    *QUERY_POSITION,
    *ANCHORS,
    (r"input_proj\.(weight|bias)", r"tokenizer.projection.\1"),
    (r"query_embed\.weight", "queries.embedding.weight"),
    (r"transformer\.encoder\.query_scale\.(.+)", r"encoder.position_scale.\1"),
    (r"class_embed\.(weight|bias)", r"decoder_heads.0.class_embed.\1"),
    (r"(?:transformer\.decoder\.)?bbox_embed\.(layers\..+)", r"decoder_heads.0.box_embed.\1"),
)

_ATTENTIONS = (("sa", "self_attn"), ("ca", "cross_attn"))
_PROJECTIONS = (
    ("qcontent", "query_content"),
    ("qpos", "query_pos"),
    ("qpos_sine", "query_spatial"),
    ("kcontent", "key_content"),
    ("kpos", "key_pos"),
    ("v", "value"),
)

# unlike in Deformable DETR's layer, norms are numbered in the order in which they run
ORDERED_NORMS: Table = (
    (r"transformer\.(decoder\.layers\.\d+)\.norm1\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norm2\.(.+)", r"\1.cross_attn_norm.\2"),
)

DETR: Table = (
    *SINGLE_SCALE,
    *ORDERED_NORMS,
    (r"transformer\.(decoder\.layers\.\d+)\.multihead_attn\.(.+)", r"\1.cross_attn.\2"),
)

# the scores come from 1x1 convolutions, which `convert_checkpoint` makes linear layers
SAMPLER: Table = (
    (r"transformer\.sampler\.score_pred_net\.0\.(.+)", r"selector.scorer.mlp.layers.0.\1"),
    (r"transformer\.sampler\.score_pred_net\.2\.(.+)", r"selector.scorer.mlp.layers.1.\1"),
    (r"transformer\.sampler\.k_proj\.(.+)", r"selector.pool.weight_proj.\1"),
    (r"transformer\.sampler\.v_proj\.(.+)", r"selector.pool.value_proj.\1"),
)

# the reference points of queries, computed once from their positions
REFERENCE_POINTS: Table = ((r"transformer\.decoder\.ref_point_head\.(.+)", r"queries.reference_points.\1"),)

DAB: Table = (
    *SINGLE_SCALE,
    *ORDERED_NORMS,
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.activation\.weight", r"\1.ffn.activation.weight"),
    *(
        (rf"transformer\.(decoder\.layers\.\d+)\.{short}_{public}_proj\.(.+)", rf"\1.{attention}.{ours}_proj.\2")
        for short, attention in _ATTENTIONS
        for public, ours in _PROJECTIONS
    ),
)

# one map as tokens, the others only sampled; encoder layers between decoder layers, see `imfa_tables`
IMFA: Table = (
    *(
        (rf"transformer\.(encoder\.layers\.\d+)\.sa_{public}_proj\.(.+)", rf"\1.self_attn.{ours}_proj.\2")
        for public, ours in _PROJECTIONS
    ),
    (r"transformer\.level_embed", "encoder.sampler.level_embed"),
    (r"transformer\.sampling_pt\.(.+)", r"encoder.sampler.sampling.\1"),
    (r"transformer\.dynamic_layer\.(.+)", r"encoder.sampler.mixing.weights.\1"),
    (r"transformer\.dynamic_norm1\.(.+)", r"encoder.sampler.mixing.hidden_norm.\1"),
    (r"transformer\.dynamic_norm2\.(.+)", r"encoder.sampler.mixing.norm.\1"),
    (r"transformer\.class_embed\.(.+)", r"decoder_heads.0.class_embed.\1"),
)


def head_owners(num_layers: int) -> list[str]:
    """Return our names of the numbered heads of a file without heads in the encoder."""
    return [*(f"decoder_heads.{i}" for i in range(num_layers)), "proposal_head"]


# detrex's copy has the same names, except for `input_proj`, which is a list over levels here
ANCHOR: Table = (
    *prefixed(RESNET, source=r"backbone\.body\.", target="backbone."),
    (r"input_proj\.(?:0\.)?0\.(weight|bias)", r"tokenizer.projection.conv.\1"),
    (r"input_proj\.(?:0\.)?1\.(weight|bias)", r"tokenizer.projection.norm.\1"),
    (r"transformer\.adapt_pos1d\.0\.(.+)", r"tokenizer.embed.mlp.layers.0.\1"),
    (r"transformer\.adapt_pos1d\.2\.(.+)", r"tokenizer.embed.mlp.layers.1.\1"),
    (r"transformer\.adapt_pos2d\.0\.(.+)", r"queries.position.mlp.layers.0.\1"),
    (r"transformer\.adapt_pos2d\.2\.(.+)", r"queries.position.mlp.layers.1.\1"),
    (r"transformer\.position\.weight", "queries.points.coordinates"),
    (r"transformer\.pattern\.weight", "queries.patterns.weight"),
    (r"transformer\.(en|de)coder_layers\.(\d+)\.((?:self|cross)_attn\..+)", r"\1coder.layers.\2.\3"),
    (r"transformer\.(en|de)coder_layers\.(\d+)\.(ffn\.linear[12]\..+)", r"\1coder.layers.\2.\3"),
    (r"transformer\.(en|de)coder_layers\.(\d+)\.ffn\.norm2\.(.+)", r"\1coder.layers.\2.ffn_norm.\3"),
    (r"transformer\.encoder_layers\.(\d+)\.norm1\.(.+)", r"encoder.layers.\1.self_attn_norm.\2"),
    # the public decoder layer runs self-attention, norm2, cross-attention, norm1
    (r"transformer\.decoder_layers\.(\d+)\.norm2\.(.+)", r"decoder.layers.\1.self_attn_norm.\2"),
    (r"transformer\.decoder_layers\.(\d+)\.norm1\.(.+)", r"decoder.layers.\1.cross_attn_norm.\2"),
    (r"transformer\.class_embed\.(\d+)\.(.+)", r"decoder_heads.\1.class_embed.\2"),
    (r"transformer\.bbox_embed\.(\d+)\.(.+)", r"decoder_heads.\1.box_embed.\2"),
)


def head_table(names: Sequence[str]) -> Table:
    """Return the rows of the prediction heads, numbered in this order: decoder layers, proposals, encoder layers."""
    num_layers = count_indices(names, r"transformer\.decoder\.layers\.(\d+)\.")
    num_heads = count_indices(names, r"class_embed\.(\d+)\.")
    owners = head_owners(num_layers)
    owners += [f"encoder_heads.{i}" for i in range(num_heads - len(owners))]
    everywhere = [
        (rf"(?:transformer\.decoder\.)?{public}\.{i}\.(.+)", rf"{owner}.{ours}.\1")
        for i, owner in enumerate(owners)
        for public, ours in (("class_embed", "class_embed"), ("bbox_embed", "box_embed"))
    ]
    in_encoder = (
        (r"transformer\.encoder\.class_embed\.(\d+)\.(.+)", r"encoder_heads.\1.class_embed.\2"),
        (r"transformer\.encoder\.bbox_embed\.(\d+)\.(.+)", r"encoder_heads.\1.box_embed.\2"),
    )
    return (*everywhere, *in_encoder)


def backbone_table(names: Sequence[str]) -> Table:
    """Return the rows of the backbone: torchvision's ResNet in a wrapper, or a Swin with or without one."""
    body = SWIN if any("patch_embed" in name for name in names) else RESNET
    return prefixed(body, source=r"backbone\.0\.(?:body\.)?", target="backbone.")


def sparse_table(names: Sequence[str]) -> Table:
    """Return the table of Deformable DETR and Sparse DETR."""
    return (*SPARSE, *TRANSFORMER, *head_table(names), *backbone_table(names))


def dino_table(names: Sequence[str]) -> Table:
    """Return the table of DINO."""
    return (*DINO, *TRANSFORMER, *head_table(names), *backbone_table(names))


def lite_dino_table(names: Sequence[str]) -> Table:
    """Return the table of Lite DINO, which drops the query projections of attention that does not use them."""
    key_aware = not any(re.match(_ATTENTION + r"attention_weights\.", name) for name in names)
    unused: Table = () if key_aware else ((_ATTENTION + r"query_proj\..+", None),)
    return (*unused, *NARROW_FFN, *dino_table(names))


def dab_deformable_table(names: Sequence[str]) -> Table:
    """Return the table of DAB-Deformable-DETR."""
    return (*ANCHORS, *QUERY_POSITION, *TRANSFORMER, *head_table(names), *backbone_table(names))


def detr_table(names: Sequence[str]) -> Table:
    """Return the table of DETR."""
    return (*DETR, *TRANSFORMER, *backbone_table(names))


def pnp_table(names: Sequence[str]) -> Table:
    """Return the table of PnP-DETR."""
    return (*SAMPLER, *detr_table(names))


def conditional_table(names: Sequence[str]) -> Table:
    """Return the table of Conditional DETR."""
    return (*REFERENCE_POINTS, *dab_table(names))


def dab_table(names: Sequence[str]) -> Table:
    """Return the table of DAB-DETR."""
    return (*DAB, *TRANSFORMER, *backbone_table(names))


def imfa_tables(names: Sequence[str]) -> tuple[Table, ...]:
    """Return the tables of IMFA on DAB-DETR; the second one puts the encoder into the decoder."""
    coarsest = count_indices(names, r"projs\.(\d+)\.") - 1
    maps = (
        (rf"projs\.{coarsest}\.(.+)", r"tokenizer.projection.\1"),
        (r"projs\.(\d+)\.(.+)", r"tokenizer.fine_projections.\1.\2"),
    )
    interleaved = ((r"encoder\.(.+)", r"decoder.encoder.\1"), (r"(.+)", r"\1"))
    return (*maps, *IMFA, *dab_table(names)), interleaved


def anchor_table(names: Sequence[str]) -> Table:
    """Return the table of Anchor DETR."""
    return ANCHOR
