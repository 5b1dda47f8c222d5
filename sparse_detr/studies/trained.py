"""Trained models that a study evaluates: output folders of trainings, or a config with a checkpoint."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparse_detr.budget_table import file_digest
from sparse_detr.config.run import Run
from sparse_detr.errors import UserError
from sparse_detr.provenance import check_one_data_set, config_digest, data_digests

SEED = re.compile(r"_seed(\d+)$")


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Args:
        name: of its folder or config, without the seed; models of one name differ by their seeds.
        seed: "" if the folder names none.
        config: path.
        weights: path.
        ema: take the averaged weights of the checkpoint.
    """

    name: str
    seed: str
    config: str
    weights: str
    ema: bool = False

    @property
    def key(self) -> str:
        """Name and seed."""
        return f"{self.name} seed {self.seed}" if self.seed else self.name

    def load(self, overrides: Sequence[str] = ()) -> tuple[nn.Module, Run]:
        """Return the model in eval mode, and its evaluation.

        Raises:
            UserError: the config or weights cannot be used, or there is no data set to evaluate on, or several.
        """
        import sparse_detr.recipes  # noqa: F401 registers the names for yaml
        from sparse_detr.config.load import load_config
        from sparse_detr.config.own_data import use_own_data
        from sparse_detr.config.run import make_run
        from sparse_detr.engine.weights import load_trained_weights

        cfg = load_config(self.config, overrides)
        use_own_data(cfg, {})
        run = make_run(cfg)
        if not run.evaluation_sets:
            raise UserError(f"{self.config} names no evaluation data; give the config of a training with --val-json")
        check_one_data_set(run)
        model = run.build_model().eval()
        load_trained_weights(model, self.weights, ema=self.ema)
        return model, run

    def made_from(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return digests of what the numbers of the model depend on: weights, config and evaluation data.

        Raises:
            UserError: a file cannot be used.
        """
        from sparse_detr.config.load import load_config

        if not Path(self.weights).is_file():
            raise UserError(f"--weights {self.weights} does not exist or is no file; give a checkpoint")
        cfg = load_config(self.config, overrides)
        return {
            "weights": file_digest(self.weights),
            "config": config_digest(cfg),
            "data": data_digests(cfg, ["test"]),
        }


def add_trained(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name trained models."""
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of trainings, each with config.yaml and model_final.pth; NAME_seed0, NAME_seed1, ... are "
        "one model with several seeds",
    )
    parser.add_argument("--config-file", metavar="FILE", help="config of one more model; a config is code")
    parser.add_argument("--weights", metavar="FILE", help="its checkpoint")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of all these checkpoints")
    parser.add_argument("--opts", nargs="*", default=[], metavar="override", help="overrides in the config's own style")


def trained_of(args: argparse.Namespace) -> list[Trained]:
    """Return the models that the options name.

    Raises:
        UserError: there is none, or a file is missing.
    """
    found = [_of_folder(Path(folder), ema=args.ema) for folder in args.runs]
    if bool(args.config_file) != bool(args.weights):
        raise UserError("--config-file and --weights go together; give both, or folders with --runs")
    if args.config_file:
        found.append(Trained(Path(args.config_file).stem, "", args.config_file, args.weights, args.ema))
    if not found:
        raise UserError("no trained model is named; give --runs DIR, or --config-file FILE --weights FILE")
    keys = [one.key for one in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"two models have the name {twice[0]}; name each once")
    return found


def _of_folder(folder: Path, *, ema: bool) -> Trained:
    files = [folder / "config.yaml", folder / "model_final.pth"]
    for file in files:
        if not file.is_file():
            raise UserError(f"--runs {folder}: there is no {file.name}; give the output folder of a finished training")
    name = folder.resolve().name
    seed = SEED.search(name)
    return Trained(SEED.sub("", name), seed.group(1) if seed else "", *map(str, files), ema=ema)


def facts_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what all numbers of a study of trained models depend on; see `Trained.made_from` for those of one."""
    return {"overrides": list(args.opts)} | ({"averaged": True} if args.ema else {})
