"""Write the config of a run as plain text values, and log what a resumed training changes."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_detr.config.kinds import kind_of
from sparse_detr.config.run import Run
from sparse_detr.files import write_atomically

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
_ABSENT = "(none)"
_UNUSED_BY_A_RESUME = ("train.init_checkpoint", "MODEL.WEIGHTS")


def write_config(run: Run) -> None:
    """Write `config.yaml` into the output folder, so that the run can be repeated and resumed."""
    folder = Path(run.settings.output_dir)
    with tempfile.TemporaryDirectory() as scratch:
        kind_of(run.config).save(Path(scratch, CONFIG_FILE))
        for path in Path(scratch).iterdir():  # a config that yaml cannot hold is pickled beside it
            content = path.read_bytes()
            write_atomically(folder / path.name, lambda file, content=content: file.write(content))
    logger.info(f"config written to {folder / CONFIG_FILE}")


def flat_config(run: Run) -> dict[str, str]:
    """Return every value of the config as text, by its path; the output folder, which may move, is a placeholder."""
    values = dict(leaves(kind_of(run.config).values(), ""))
    folder = run.settings.output_dir
    return {key: value.replace(folder, "<output folder>") if folder else value for key, value in values.items()}


def leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of every value of a tree of dicts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, _value_as_text(value)


def _value_as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value_as_text, value))}]"
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', value)}"
    return str(value)


def log_changes(old: dict[str, str] | None, new: dict[str, str]) -> None:
    """Log which values of the config differ from those that a checkpoint was trained with.

    Args:
        old: `flat_config` of the checkpoint; None if an older version wrote it.
    """
    if old is None:
        return
    changes = [
        f"  {key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in _UNUSED_BY_A_RESUME
    ]
    if changes:
        logger.warning("settings that differ from the checkpoint's; the new ones are used:\n" + "\n".join(changes))
