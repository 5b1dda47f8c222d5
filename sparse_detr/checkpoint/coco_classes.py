"""Turn COCO's 91 category ids, which public DETR code uses as class numbers, into 80 contiguous classes."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_detr.errors import UserError

UNUSED_COCO_IDS = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(i for i in range(91) if i not in UNUSED_COCO_IDS)
"""COCO's category ids by class index: the rows of the 80 classes in a head with 91."""
CLASS_ROWS = re.compile(r"(?:.*\.)?(?:class_embed\.(?:weight|bias)|label_embed\.weight)")
UNUSED_BIAS = -1e4  # its exponential is 0 in every precision, and half precision can hold it
LABEL_EMBED = "denoising.label_embed.weight"


def is_class_rows(name: str) -> bool:
    """Return whether the entry has one row a class."""
    return CLASS_ROWS.fullmatch(name) is not None


def count_class_rows(state_dict: Mapping[str, Tensor]) -> int | None:
    """Return the number of rows of a class head in a converted file; None without one."""
    heads = (value for name, value in state_dict.items() if is_class_rows(name) and name != LABEL_EMBED)
    return next((len(value) for value in heads), None)


def check_class_rows(state_dict: Mapping[str, Tensor]) -> None:
    """Check that all class heads, and the label embedding, have as many rows.

    Raises:
        UserError: they differ; names the first entry that does.
    """
    rows = {name: len(value) for name, value in state_dict.items() if is_class_rows(name)}
    expected = count_class_rows(state_dict)
    if expected is None:
        return
    if odd := next((name for name, number in rows.items() if number != expected), None):
        raise UserError(
            f"{odd} has {rows[odd]} class rows where the class heads have {expected}: the file was edited or is "
            "damaged; fetch it again"
        )


def without_unused_labels(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut the label embedding of denoising queries to one row a class: official DINO files have an unused last row."""
    result = dict(state_dict)
    if LABEL_EMBED in result:
        result[LABEL_EMBED] = result[LABEL_EMBED][: count_class_rows(state_dict)]
    return result


def coco_91_to_80(
    state_dict: Mapping[str, Tensor], *, binary_proposals: bool = False, no_object: bool = False
) -> dict[str, Tensor]:
    """Keep the 80 rows of every class head and label embedding that stand for a COCO category.

    In a proposal head trained on binary labels, row 0 means "foreground" and all other rows are negatives. It keeps its
    first 80 rows, so that row 0 stays the score.

    Args:
        state_dict: entries under our names, with 91 class rows.
        binary_proposals: the proposal head was trained on binary labels.
        no_object: there is a further row for "no object", which stays the last.

    Raises:
        UserError: binary proposals and the decoder share one head, so row 0 would be both foreground and person.
    """
    if binary_proposals and _proposals_share_the_decoder_head(state_dict):
        raise UserError(
            "this two-stage file has one head for the decoder (row = COCO category id) and for its binary proposals "
            "(row 0 = foreground), so its rows cannot be 80 contiguous classes; keep the 91 classes (--classes 91)"
        )
    category_rows = torch.tensor((*COCO_IDS, 91) if no_object else COCO_IDS)
    result = {}
    for name, value in state_dict.items():
        if not is_class_rows(name):
            result[name] = value
        elif binary_proposals and name.startswith("proposal_head."):
            result[name] = value[: len(COCO_IDS)].clone()
        else:
            result[name] = value[category_rows]
    return result


def coco_80_to_91(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the 80 class rows of softmax heads to the category ids of COCO; the last row, "no object", stays the last.

    The ids without a category get a weight of 0 and a bias so low that their probability is 0.

    Args:
        state_dict: entries under our names, with 81 class rows.
    """
    rows = torch.tensor((*COCO_IDS, 91))
    result = dict(state_dict)
    for name in filter(is_class_rows, state_dict):
        value = state_dict[name]
        result[name] = value.new_full((92, *value.shape[1:]), UNUSED_BIAS if value.dim() == 1 else 0.0)
        result[name][rows] = value
    return result


def _proposals_share_the_decoder_head(state_dict: Mapping[str, Tensor]) -> bool:
    proposals = state_dict.get("proposal_head.class_embed.weight")
    decoder = state_dict.get("decoder_heads.0.class_embed.weight")
    return proposals is not None and decoder is not None and torch.equal(proposals, decoder)
