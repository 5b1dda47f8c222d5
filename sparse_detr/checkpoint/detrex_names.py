"""Tables for the names in detrex's checkpoints: a Detectron2 backbone, and layers of numbered parts."""

from collections.abc import Sequence

from sparse_detr.checkpoint.name_maps import RESNET, Table, count_indices, prefixed
from sparse_detr.checkpoint.official_names import (
    ANCHORS,
    DINO,
    REFERENCE_POINTS,
    SAMPLER,
    SCORING_NETWORK,
    SINGLE_SCALE,
    head_table,
)

# Detectron2's names stay as they are; a dilated ResNet is torchvision's in a wrapper
BACKBONE: Table = (
    *prefixed(RESNET, source=r"backbone\.body\.", target="backbone."),
    (r"backbone\.(?!body\.)(.+)", r"backbone.\1"),
)

# norms are numbered in the order in which they run
LAYERS: Table = (
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.ffns\.0\.layers\.0\.0\.(.+)", r"\1.ffn.linear1.\2"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.ffns\.0\.layers\.1\.(.+)", r"\1.ffn.linear2.\2"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.norms\.0\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norms\.1\.(.+)", r"\1.ffn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norms\.1\.(.+)", r"\1.cross_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norms\.2\.(.+)", r"\1.ffn_norm.\2"),
)

# an encoder layer of Focus-DETR begins with attention among objects, which the class head of the proposals chooses;
# that head is saved under eighteen names
OBJECT_ATTENTION: Table = (
    (r"transformer\.(encoder\.layers\.\d+)\.attentions\.0\.attn\.(.+)", r"\1.object_attn.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm2\.(.+)", r"\1.object_attn_norm.\2"),
    (r"(?:enhance_MCSP_layerlist|transformer\.encoder\.enhance_MCSP)\.\d+\.(.+)", r"proposal_head.class_embed.\1"),
    (r"transformer\.alpha", "selector.scorer.alpha"),
)

DEFORMABLE: Table = (
    *BACKBONE,
    *LAYERS,
    *OBJECT_ATTENTION,
    *SCORING_NETWORK,
    *ANCHORS,
    *DINO,
    (r"transformer\.level_embeds", "tokenizer.level_embed"),
    (r"neck\.convs\.(\d+)\.(.+)", r"tokenizer.projections.\1.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.attentions\.[01]\.(?!attn\.)(.+)", r"\1.self_attn.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.0\.attn\.(.+)", r"\1.self_attn.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.1\.(.+)", r"\1.cross_attn.\2"),
)

# one map, full attention
FULL: Table = (
    *BACKBONE,
    *LAYERS,
    (r"transformer\.decoder\.post_norm_layer\.(.+)", r"decoder.norm.\1"),
    (r"transformer\.(encoder\.layers\.\d+)\.attentions\.0\.attn\.(.+)", r"\1.self_attn.\2"),
)

DETR: Table = (
    *FULL,
    *SINGLE_SCALE,
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.0\.attn\.(.+)", r"\1.self_attn.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.1\.attn\.(.+)", r"\1.cross_attn.\2"),
    (r"criterion\.empty_weight", None),  # a constant of the class loss
)

CONDITIONAL_DECODER: Table = (
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.0\.(.+)", r"\1.self_attn.\2"),
    (
        r"transformer\.(decoder\.layers\.\d+)\.attentions\.1\.query_pos_sine_proj\.(.+)",
        r"\1.cross_attn.query_spatial_proj.\2",
    ),
    (r"transformer\.(decoder\.layers\.\d+)\.attentions\.1\.(.+)", r"\1.cross_attn.\2"),
)

DAB: Table = (
    *FULL,
    *SINGLE_SCALE,
    (
        r"transformer\.((?:en|de)coder\.layers\.\d+)\.ffns\.0\.(?:activation|layers\.0\.1)\.weight",
        r"\1.ffn.activation.weight",
    ),
    *CONDITIONAL_DECODER,
)


def extra_level_table(names: Sequence[str]) -> Table:
    """Return the rows of the levels beyond the backbone's, which are numbered from 0 again."""
    first = count_indices(names, r"neck\.convs\.(\d+)\.")
    count = count_indices(names, r"neck\.extra_convs\.(\d+)\.")
    return tuple((rf"neck\.extra_convs\.{i}\.(.+)", rf"tokenizer.projections.{first + i}.\1") for i in range(count))


def deformable_table(names: Sequence[str]) -> Table:
    """Return the table of DINO, Focus-DETR and DAB-Deformable-DETR."""
    return (*DEFORMABLE, *extra_level_table(names), *head_table(names))


def detr_table(names: Sequence[str]) -> Table:
    """Return the table of DETR."""
    return DETR


def pnp_table(names: Sequence[str]) -> Table:
    """Return the table of PnP-DETR."""
    return (*SAMPLER, *detr_table(names))


def conditional_table(names: Sequence[str]) -> Table:
    """Return the table of Conditional DETR."""
    return (*REFERENCE_POINTS, *DAB)


def dab_table(names: Sequence[str]) -> Table:
    """Return the table of DAB-DETR."""
    return DAB
