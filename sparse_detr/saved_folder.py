"""A folder with all that a predictor needs, to take to another machine: `predictor.save(DIR)`, `Predictor(DIR)`.

DIR/config.yaml          model and preprocessing
DIR/model.safetensors    weights, without those that only training needs
DIR/predictor.json       class names and the options of a call
DIR/README.md            a card for people
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_atomically, write_text_atomically

if TYPE_CHECKING:
    from torch import nn

    from sparse_detr.config.kinds import Config

CONFIG, WEIGHTS, FACTS, CARD = "config.yaml", "model.safetensors", "predictor.json", "README.md"
FORMAT = 1


def is_saved_folder(config: Any) -> bool:
    """Return whether a predictor's config is a folder."""
    return isinstance(config, str | os.PathLike) and os.path.isdir(os.path.expanduser(os.fspath(config)))


def read_folder(folder: str | os.PathLike[str]) -> tuple[str, str, list[str], dict[str, Any]]:
    """Return config file, weights, class names and the options of a call.

    Raises:
        UserError: the folder was not saved by a predictor, or by a newer version.
    """
    path = Path(os.path.expanduser(os.fspath(folder)))
    missing = [name for name in (CONFIG, WEIGHTS, FACTS) if not (path / name).is_file()]
    if missing:
        raise UserError(
            f"{path} is no saved predictor: it has no {missing[0]}; give the config and the weights of a training as "
            f"two files, such as {path / CONFIG} and {path / 'model_final.pth'}"
        )
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if facts["format"] > FORMAT:
            raise UserError(f"{path} was saved by sparse_detr {facts['version']}; install that version or a newer one")
        return str(path / CONFIG), str(path / WEIGHTS), list(facts["class_names"]), dict(facts["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / FACTS} is no record of a predictor ({error!r}); save the folder again") from error


def write_folder(
    folder: str | os.PathLike[str],
    cfg: Config,
    model: nn.Module,
    class_names: list[str],
    options: dict[str, Any],
    notes: str = "",
) -> None:
    """Write the folder; the weights come last but one, the record last, so that a partial folder is refused.

    Args:
        folder: it is made; files of an earlier save are replaced.
        cfg: of the model.
        model: with its weights, not in inference form.
        class_names: by class index.
        options: of a call, plain values.
        notes: text for the card.

    Raises:
        UserError: the folder cannot be written.
    """
    from safetensors.torch import save

    from sparse_detr import __version__
    from sparse_detr.config.kinds import kind_of

    path = make_folder(folder)
    (path / FACTS).unlink(missing_ok=True)
    kind = kind_of(kind_of(cfg).copy())
    kind.set("train.init_checkpoint", "")
    kind.save(path / CONFIG)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    content = save(weights, metadata={"format": "pt"})
    write_atomically(path / WEIGHTS, lambda file: file.write(content))
    facts = {"format": FORMAT, "version": __version__, "class_names": class_names, "options": options}
    write_text_atomically(path / CARD, card(model, facts, notes))
    write_text_atomically(path / FACTS, json.dumps(facts, indent=1) + "\n")


def card(model: nn.Module, facts: dict[str, Any], notes: str) -> str:
    """Return the text of the card."""
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    names = facts["class_names"]
    classes = ", ".join(names) if names else "names unknown"
    options = {name: value for name, value in facts["options"].items() if value is not None}
    kinds = f"{len(names)} class{'' if len(names) == 1 else 'es'}" if names else "unnamed classes"
    lines = [
        f"# A detector of {kinds}",
        "",
        *([notes.strip(), ""] if notes.strip() else []),
        "```python",
        "from sparse_detr import Predictor",
        "",
        'predictor = Predictor("this folder")',
        'instances = predictor("image.jpg", score_threshold=0.3)',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {classes} |",
        f"| model | {type(model).__name__}, {parameters:.1f} million weights; `{CONFIG}` describes it |",
        f"| preprocessing | that of `{CONFIG}`, as in the evaluation |",
        f"| options of a call | {', '.join(f'{name}={value!r}' for name, value in options.items())} |",
        f"| made by | sparse_detr {facts['version']} |",
        "",
        f"`{CONFIG}` is code: load only folders you trust. `{WEIGHTS}` is not.",
    ]
    return "\n".join(lines) + "\n"
