"""Rename the entries of a checkpoint by tables; the tables of backbones.

A table has `(pattern, replacement)` rows. A pattern must match the whole name; the first row that matches decides. The
replacement `None` drops the entry on purpose; an entry that no row matches is reported as unknown. Several public names
may become one of ours (heads are saved under up to three names): `convert_checkpoint` checks that their values are
equal. A replacement that ends in `[0]`, `[1]`, ... makes a part of an entry of ours, whose rows are those of its parts.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Row = tuple[str, str | None]
Table = tuple[Row, ...]


def count_indices(names: Iterable[str], pattern: str) -> int:
    """Count the different numbers that the group of `pattern` matches at the start of the names."""
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


def rename(name: str, tables: Iterable[Table]) -> tuple[str | None, bool]:
    """Rename by all tables in turn; return our name, None for a dropped entry, and whether every table had a row."""
    for table in tables:
        row = next(((match, to) for pattern, to in table if (match := re.fullmatch(pattern, name))), None)
        if row is None:
            return None, False
        match, replacement = row
        if replacement is None:
            return None, True
        name = match.expand(replacement)
    return name, True


def join_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the parts `name[0]`, `name[1]`, ... of an entry to `name`, along its rows."""
    parts: dict[str, dict[int, Tensor]] = {}
    result = {}
    for name, value in weights.items():
        whole, index = part_of(name)
        if index is None:
            result[name] = value
        else:
            parts.setdefault(whole, {})[index] = value
    return result | {name: torch.cat([pieces[i] for i in sorted(pieces)]) for name, pieces in parts.items()}


def part_of(name: str) -> tuple[str, int | None]:
    """Split `name[1]` into its entry `name` and the number of the part; a whole entry has None."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (name, None) if match is None else (match[1], int(match[2]))


def prefixed(table: Table, *, source: str, target: str) -> Table:
    """Return the rows for names that start with `source` (a pattern without groups); results start with `target`."""
    return tuple((source + pattern, None if to is None else target + to) for pattern, to in table)


def _resnet_stage(stage: int) -> Table:
    """Return the rows of torchvision's `layer<stage>`, which Detectron2 calls `res<stage + 1>`."""
    source, target = rf"layer{stage}\.(\d+)\.", rf"res{stage + 1}.\1."
    return (
        (source + r"conv(\d)\.weight", target + r"conv\2.weight"),
        (source + r"bn(\d)\.(.+)", target + r"conv\2.norm.\3"),
        (source + r"downsample\.0\.weight", target + "shortcut.weight"),
        (source + r"downsample\.1\.(.+)", target + r"shortcut.norm.\2"),
    )


# torchvision -> Detectron2; a frozen normalisation needs no counter of batches
RESNET: Table = (
    (r".*num_batches_tracked", None),
    (r"fc\..+", None),
    (r"conv1\.weight", "stem.conv1.weight"),
    (r"bn1\.(.+)", r"stem.conv1.norm.\1"),
    *(row for stage in range(1, 5) for row in _resnet_stage(stage)),
)

# Detectron2's Swin keeps the public names but computes `attn_mask`; `norm` and `head` belong to the classifier
SWIN: Table = (
    (r"(head|norm)\..+", None),
    (r".*\.attn_mask", None),
    (r"((?:patch_embed|layers|norm\d)\..+)", r"\1"),
)

# DAT keeps the public names but computes two buffers; `cls_norm` and `cls_head` belong to the classifier. Detectors of
# mmdet have it under `backbone.`, beside their own parts
DAT: Table = (
    (r"(cls_norm|cls_head|neck|bbox_head|rpn_head|roi_head)\..+", None),
    (r".*\.(attn_mask|relative_position_index)", None),
    (r"(?:backbone\.)?((?:patch_proj|stages|down_projs|norms)\..+)", r"\1"),
)

# A self-supervised ResNet (SCRL) with numbered children, as in an `nn.Sequential`; all else is projection heads
NUMBERED_RESNET: Table = (
    (r"(?:.*\.)?encoder\.0\.(.+)", r"conv1.\1"),
    (r"(?:.*\.)?encoder\.1\.(.+)", r"bn1.\1"),
    *((rf"(?:.*\.)?encoder\.{stage + 3}\.(.+)", rf"layer{stage}.\1") for stage in range(1, 5)),
    (r".+", None),
)
