"""Renaming the entries of a checkpoint by tables, and the tables of backbones.

A table has `(pattern, replacement)` rows. A pattern must match the whole name; the first row that matches decides. A
replacement of `None` drops the entry on purpose; an entry that no row matches is reported as unknown. Several public
names may lead to one of ours (the heads are saved under up to three names): `convert_checkpoint` checks that they hold
equal values.
"""

import re
from collections.abc import Iterable

Rule = tuple[str, str | None]
Table = tuple[Rule, ...]


def count_indices(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the one group of `pattern` takes at the start of the names."""
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


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
