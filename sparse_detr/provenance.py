"""What measured numbers are made from: digests of configs and of data, wherever their files lie.

Numbers in a file are continued only if these are the same, since other models and data often have the same names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.budget_table import file_digest
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr.config.kinds import Config
    from sparse_detr.config.run import Run

_OWN = {"train": "train_", "test": "val_"}


def config_digest(cfg: Config) -> str:
    """Return the SHA-256 of the settings of a config, overrides included.

    The output folder is left out, and so are the paths of own data with the names made from them: `data_digests` tells
    these data.
    """
    from sparse_detr.config.kinds import kind_of

    kind = kind_of(kind_of(cfg).copy())
    ignored = ["train.output_dir"]
    if kind.get("train.own_data"):
        ignored += ["train.own_data", "dataloader.train.dataset.names", "dataloader.test.dataset.names"]
    for key in ignored:
        if kind.get(key) is not None:
            kind.set(key, "")
    return hashlib.sha256(kind.text().encode(errors="surrogateescape")).hexdigest()


def data_digests(cfg: Config, parts: Sequence[str], own_data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the SHA-256 of the annotation files of a config, and the names of the folders of own images.

    Args:
        cfg: a config whose data sets are registered, as after `load_config`.
        parts: "train", "test" or both.
        own_data: paths by the names of the command line's options; without them those in `cfg` are used.

    Returns:
        Digests by option for own data, else by the name of the data set; None for a set without a file on this machine.

    Raises:
        UserError: a file of own data does not exist.
    """
    from sparse_detr.config.kinds import kind_of, names_in

    own = own_data or kind_of(cfg).get("train.own_data") or {}
    own = {str(key).lower(): value for key, value in own.items() if value}
    if own:
        others = tuple(prefix for part, prefix in _OWN.items() if part not in parts)
        return {key: _own_fact(key, value) for key, value in own.items() if not key.startswith(others)}
    return {name: _registered_digest(name) for part in parts for name in names_in(cfg, part)}


def _own_fact(key: str, value: Any) -> Any:
    if key.endswith("_images"):
        return Path(value).name
    if not key.endswith("_json"):
        return value
    if not os.path.isfile(value):
        raise UserError(f"own data: {value} ({key}) does not exist or is no file; give its path")
    return file_digest(value)


def _registered_digest(name: str) -> str | None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    path = MetadataCatalog.get(name).get("json_file") if name in DatasetCatalog else None
    return file_digest(path) if path and os.path.isfile(path) else None


def check_one_data_set(run: Run) -> None:
    """Refuse several data sets for the evaluation, where images and boxes of one are measured.

    Raises:
        UserError: names them, and the override that leaves one.
    """
    from sparse_detr.config.kinds import kind_of

    names = [name for evaluation in run.evaluation_sets for name in evaluation.names]
    if len(names) > 1:
        kind = kind_of(run.config)
        one = kind.choose(lazy=names[0], yacs=f"\"('{names[0]}',)\"")
        raise UserError(
            f"the config evaluates on {len(names)} data sets ({', '.join(names)}), but this command measures one; "
            f"choose it: --opts {kind.assignment('dataloader.test.dataset.names', one)}"
        )
