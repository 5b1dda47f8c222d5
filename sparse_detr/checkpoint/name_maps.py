"""How the entries of public checkpoints are called here: one table of `(pattern, replacement)` rows a layout.

A pattern must match the whole name; the first row that matches decides. A replacement of `None` drops the entry on
purpose; an entry that no row matches is reported as unknown. Several public names may lead to one of ours (the heads
are saved under up to three names): `convert_checkpoint` checks that they hold equal values.

A further paper adds a `Layout` to `LAYOUTS`, most of whose rows it can take from the tables here.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Rule = tuple[str, str | None]
Table = tuple[Rule, ...]


@dataclass(frozen=True)
class Layout:
    """One way in which public code names its entries.

    Args:
        name: what `--source` calls it.
        marks: patterns that tell the layout; each must be found in some name.
        tables: from the names of a file to the tables that rename them one after the other.
    """

    name: str
    marks: tuple[str, ...]
    tables: Callable[[Sequence[str]], tuple[Table, ...]]

    def recognises(self, names: Iterable[str]) -> bool:
        """True if every mark is found among the names."""
        names = list(names)
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)


def rename(name: str, tables: Iterable[Table]) -> tuple[str | None, bool]:
    """Take a name through the tables: `(our name or None for a dropped entry, whether a row was found for it)`."""
    for table in tables:
        row = next(((match, to) for pattern, to in table if (match := re.fullmatch(pattern, name))), None)
        if row is None:
            return None, False
        match, replacement = row
        if replacement is None:
            return None, True
        name = match.expand(replacement)
    return name, True


def prefixed(table: Table, *, source: str, target: str) -> Table:
    """The same rows for names that start with `source` (without groups); `target` goes in front of the results."""
    return tuple((source + pattern, None if to is None else target + to) for pattern, to in table)


def _resnet_stage(stage: int) -> Table:
    """Rows of torchvision's `layer<stage>`, which Detectron2 calls `res<stage + 1>`."""
    source, target = rf"layer{stage}\.(\d+)\.", rf"res{stage + 1}.\1."
    return (
        (source + r"conv(\d)\.weight", target + r"conv\2.weight"),
        (source + r"bn(\d)\.(.+)", target + r"conv\2.norm.\3"),
        (source + r"downsample\.0\.weight", target + "shortcut.weight"),
        (source + r"downsample\.1\.(.+)", target + r"shortcut.norm.\2"),
    )


# torchvision -> Detectron2; the counters of batches mean nothing to a frozen normalisation
RESNET: Table = (
    (r".*num_batches_tracked", None),
    (r"fc\..+", None),
    (r"conv1\.weight", "stem.conv1.weight"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    *(row for stage in range(1, 5) for row in _resnet_stage(stage)),
)

# Detectron2's Swin keeps the public names; `norm` and `head` belong to the classifier, `attn_mask` is recomputed there
SWIN: Table = (
    (r"(head|norm)\..+", None),
    (r".*\.attn_mask", None),
    (r"((?:patch_embed|layers|norm\d)\..+)", r"\1"),
)

# A self-supervised ResNet whose children are numbered, as in an `nn.Sequential` (SCRL); the rest is projection heads
NUMBERED_RESNET: Table = (
    (r"(?:.*\.)?encoder\.0\.(.+)", r"conv1.\1"),
    (r"(?:.*\.)?encoder\.1\.(.+)", r"bn1.\1"),
    *((rf"(?:.*\.)?encoder\.{stage + 3}\.(.+)", rf"layer{stage}.\1") for stage in range(1, 5)),
    (r".+", None),
)

TRANSFORMER: Table = (
    (r"transformer\.level_embed", "tokenizer.level_embed"),
    (r"input_proj\.(\d+)\.0\.(.+)", r"tokenizer.projections.\1.conv.\2"),
    (r"input_proj\.(\d+)\.1\.(.+)", r"tokenizer.projections.\1.norm.\2"),
    (r"transformer\.enc_output\.(.+)", r"projection.linear.\1"),
    (r"transformer\.enc_output_norm\.(.+)", r"projection.norm.\1"),
    (r"transformer\.enc_mask_predictor\.layer1\.0\.(.+)", r"selector.scorer.network.norm.\1"),
    (r"transformer\.enc_mask_predictor\.layer1\.1\.(.+)", r"selector.scorer.network.embed.\1"),
    (r"transformer\.enc_mask_predictor\.layer2\.(\d)\.(.+)", r"selector.scorer.network.mlp.\1.\2"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+\.(?:self|cross)_attn\..+)", r"\1"),
    (r"transformer\.((?:en|de)coder\.layers\.\d+)\.(linear[12]\..+)", r"\1.ffn.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm1\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(encoder\.layers\.\d+)\.norm2\.(.+)", r"\1.ffn_norm.\2"),
    # the public decoder layer runs self-attention, norm2, cross-attention, norm1, feed-forward, norm3
    (r"transformer\.(decoder\.layers\.\d+)\.norm2\.(.+)", r"\1.self_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norm1\.(.+)", r"\1.cross_attn_norm.\2"),
    (r"transformer\.(decoder\.layers\.\d+)\.norm3\.(.+)", r"\1.ffn_norm.\2"),
    (r"query_embed\.weight", "queries.embedding.weight"),
    (r"transformer\.reference_points\.(.+)", r"queries.reference_points.\1"),
    (r"transformer\.pos_trans\.(.+)", r"queries.position_projection.linear.\1"),
    (r"transformer\.pos_trans_norm\.(.+)", r"queries.position_projection.norm.\1"),
)

PUBLIC_BODY = r"backbone\.0\.body\."


def count_indices(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the one group of `pattern` takes at the start of the names."""
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


def head_table(names: Sequence[str]) -> Table:
    """Rows of the prediction heads, which are numbered through: decoder layers, proposals, then encoder layers."""
    num_layers = count_indices(names, r"transformer\.decoder\.layers\.(\d+)\.")
    num_heads = count_indices(names, r"class_embed\.(\d+)\.")
    owners = [f"decoder_heads.{i}" for i in range(num_layers)] + ["proposal_head"]
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


def _deformable_tables(names: Sequence[str]) -> tuple[Table, ...]:
    body = SWIN if any("patch_embed" in name for name in names) else RESNET
    return ((*TRANSFORMER, *head_table(names), *prefixed(body, source=PUBLIC_BODY, target="backbone.")),)


def _backbone_tables(*tables: Table) -> Callable[[Sequence[str]], tuple[Table, ...]]:
    *first, last = tables
    result = (*first, prefixed(last, source="", target="backbone."))
    return lambda names: result


_DEFORMABLE_MARKS = (r"^transformer\.level_embed$", r"^input_proj\.0\.0\.", r"^class_embed\.0\.")

# in the order in which `auto` tries them
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("sparse_detr", (*_DEFORMABLE_MARKS, r"^transformer\.enc_mask_predictor\."), _deformable_tables),
        Layout("deformable_detr", _DEFORMABLE_MARKS, _deformable_tables),
        Layout("torchvision_resnet", (r"^conv1\.weight$", r"^layer1\.0\.conv1\.weight$"), _backbone_tables(RESNET)),
        Layout("swin", (r"^patch_embed\.proj\.weight$", r"^layers\.0\.blocks\.0\.attn\."), _backbone_tables(SWIN)),
        Layout(
            "scrl",
            (r"(^|\.)encoder\.0\.weight$", r"(^|\.)encoder\.4\.0\.conv1\.weight$"),
            _backbone_tables(NUMBERED_RESNET, RESNET),
        ),
    )
}
