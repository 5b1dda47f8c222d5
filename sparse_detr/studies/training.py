"""Trainings of a study: one process each, gone on after a stop, with the scores of its last evaluation."""

from __future__ import annotations

import argparse
import difflib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sparse_detr.checks import check_share
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.load import load_config
from sparse_detr.config.own_data import OWN_DATA_KEYS
from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_text_atomically
from sparse_detr.provenance import config_digest, data_digests
from sparse_detr.studies.driver import Result
from sparse_detr.visualization.curves import METRICS_FILE, read_runs

BASE = "quick/deformable_detr_topk_mnv2.py"
LEARNED = 10.0
"""AP from which on a model has learned enough to be compared."""
SHOWN_CHANGES = 6


def add_training(parser: argparse.ArgumentParser, *, rhos: Sequence[float] = ()) -> None:
    """Declare the options of a study that trains.

    Args:
        rhos: default of `--rhos`; () for a study without this option.
    """
    parser.add_argument(
        "--config-file",
        default=BASE,
        metavar="FILE",
        help=f"lazy config of the dense two-stage model, or its name ({BASE}, on the sample data; for COCO "
        "SparseDETR/deformable_detr_topk_r50.py); a config is code",
    )
    parser.add_argument("--iterations", type=int, default=600, metavar="N", help="of every training (600)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="one training each (0)")
    if rhos:
        text = " ".join(map(str, rhos))
        parser.add_argument(
            "--rhos", nargs="+", type=float, default=list(rhos), metavar="R", help=f"shares of the tokens ({text})"
        )
    data = parser.add_argument_group("own data in COCO format")
    for key in OWN_DATA_KEYS:
        kind = "FILE" if key.endswith("json") else "DIR"
        data.add_argument(f"--{key.replace('_', '-')}", metavar=kind)
    parser.add_argument("--opts", nargs="*", default=[], metavar="override", help="overrides path.key=value")


def check_training(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option and its value.
    """
    if args.iterations < 1:
        raise UserError(f"--iterations {args.iterations} trains nothing; give 1 or more")
    for rho in getattr(args, "rhos", ()):
        check_share("--rhos", rho)
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"--seeds names a seed twice: {' '.join(map(str, args.seeds))}; name each once")


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the scores depend on, with digests of the config and the data, wherever they lie.

    Raises:
        UserError: the config or a file of own data cannot be used.
    """
    cfg = dense_config(args)
    return {
        "config": Path(args.config_file).stem,
        "iterations": args.iterations,
        "overrides": list(args.opts),
        "text of the config": config_digest(cfg),
        "data": _data_of(cfg, args),
    }


def _data_of(cfg: DictConfig, args: argparse.Namespace) -> dict[str, Any]:
    return data_digests(
        cfg, ["train", "test"], {key: getattr(args, key) for key in OWN_DATA_KEYS if getattr(args, key)}
    )


def dense_config(args: argparse.Namespace) -> DictConfig:
    """Load the config of the dense model, without an auxiliary loss of the encoder.

    Raises:
        UserError: there is no such config, it is a yaml, or its model has no proposals from which queries start.
    """
    from sparse_detr.model_zoo import get_config_file

    path = args.config_file if Path(args.config_file).is_file() else get_config_file(args.config_file)
    cfg = load_config(path, args.opts)
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} is a yacs config; a study changes parts of the model, so give a lazy one (.py)")
    if not kind_of(cfg).get("model.heads.proposals"):
        raise UserError(f"the model of {path} has no proposals; give a two-stage one, such as {BASE}")
    cfg.model.heads.encoder_layers = 0
    return cfg


def train(
    cfg: DictConfig, args: argparse.Namespace, folder: Path, seed: int, made_from: Mapping[str, Any] | None = None
) -> Result:
    """Train a model, or go on with its stopped training; return its last scores.

    The config is kept in `configs/` beside the folder, with digests of the data as comments above.

    Args:
        cfg: the config; iterations and seed are set in it.
        args: the options of the study.
        folder: output folder of the training.
        seed: of the training.
        made_from: digests of what the training depends on besides config and data.

    Raises:
        UserError: the training fails, or a stopped or finished one in the folder had other settings or data.
    """
    cfg.train.seed, cfg.train.max_iter, cfg.train.eval_period = seed, args.iterations, args.iterations
    config = make_folder(folder.parent / "configs") / f"{folder.name}.yaml"
    sources = {**_data_of(cfg, args), **(made_from or {})}
    text = "".join(f"# {name}: {value!r}\n" for name, value in sources.items()) + kind_of(cfg).text()
    if any(folder.glob("*.pth")):
        _refuse_other_settings(folder, config, text)
    if found := final_scores(folder):
        return {"seed": seed, **found}
    write_text_atomically(config, text)
    command = [sys.executable, "-m", "sparse_detr.train", "--config-file", str(config), "--resume"]
    command += ["--output-dir", str(folder)]
    for key in OWN_DATA_KEYS:
        if value := getattr(args, key):
            command += [f"--{key.replace('_', '-')}", value]
    if subprocess.run(command).returncode:
        raise UserError(f"the training in {folder} failed, see above; the same command goes on from where it stopped")
    found = final_scores(folder)
    if not found:
        raise UserError(f"the training in {folder} has no AP; the config needs evaluation data")
    return {"seed": seed, **found}


def _refuse_other_settings(folder: Path, config: Path, text: str) -> None:
    """Refuse a training that was started with another config, or from other files, than `text` says."""
    remedy = "remove the folder, or choose another --output"
    if not config.is_file():
        raise UserError(f"the training in {folder} had other settings, or {config} is gone, which tells them; {remedy}")
    old = config.read_text(encoding="utf-8")
    changes = [line for line in difflib.ndiff(old.splitlines(), text.splitlines()) if line.startswith(("- ", "+ "))]
    if changes:
        shown = "\n  ".join(changes[:SHOWN_CHANGES] + ["..."] * (len(changes) > SHOWN_CHANGES))
        raise UserError(
            f"the training in {folder} had other settings or data; {remedy}. Lines of {config} that are gone (-) or "
            f"new (+) now:\n  {shown}"
        )


def final_scores(folder: Path) -> dict[str, float]:
    """Return AP, iterations and, unless it is too short to say, seconds an iteration of a finished run; {} if none."""
    if not (folder / "model_final.pth").is_file() or not (folder / METRICS_FILE).is_file():
        return {}
    (run,) = read_runs([str(folder)])
    if "bbox/AP" not in run.series:
        return {}
    last = run.series["bbox/AP"][0][-1]
    scores = {
        name.removeprefix("bbox/"): values[-1]
        for name, (iterations, values) in run.series.items()
        if name.startswith("bbox/") and iterations[-1] == last
    }
    _, seconds = run.series.get("time", ([], []))
    return {
        **scores,
        **({"seconds_per_iteration": statistics.median(seconds)} if seconds else {}),
        "iterations": last,
    }


def judged(agrees: bool, best: float) -> bool | None:
    """Return whether a study agrees with the paper; None if the best mean AP says that nothing has been learned."""
    return agrees if best >= LEARNED else None


def cautions_of(groups: Mapping[Any, Sequence[Result]], best: float) -> list[str]:
    """Return why the answer of trainings may be wrong: models that have hardly learned, few seeds.

    Args:
        groups: the results of every setting, one a seed.
        best: the best mean AP.
    """
    found = []
    if best < LEARNED:
        found.append(f"the best model has {best:.1f} AP: all have hardly learned, so train longer")
    if (seeds := min(map(len, groups.values()))) < 3:
        found.append(f"{seeds} seed{'s' * (seeds > 1)} cannot tell the spread")
    return found
