"""Run the batch of a `nonfinite_iter_*.pth` bundle again.

    python -m sparse_detr.engine.replay BUNDLE --config-file CONFIG

The training wrote its `config.yaml` beside the bundle. A config is code, so it is not loaded unless you name it: load
only configs you trust.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from sparse_detr.checkpoint import load_file
from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.engine.nonfinite import find_first_bad_tensor, unpack_batch
from sparse_detr.engine.precision import Precision
from sparse_detr.engine.prepare import prepare_model
from sparse_detr.engine.random_state import set_random_state
from sparse_detr.errors import UserError


@dataclass(frozen=True)
class Replay:
    """The result of running a bundle again; `first_bad_tensor` is empty if all was finite."""

    losses: dict[str, float]
    first_bad_tensor: str


def replay_bundle(bundle: dict[str, Any], model: nn.Module) -> Replay:
    """Load the bundle's weights into `model`, then repeat its forward and backward pass with its random numbers."""
    try:
        model.load_state_dict(bundle["model"])
    except RuntimeError as error:
        raise UserError(f"the bundle is of another model than the config: {error}") from error
    model.train()
    precision = Precision(name=bundle["precision"], device=next(model.parameters()).device)
    losses: dict[str, torch.Tensor] = {}

    def run() -> None:
        with precision.autocast(), EventStorage(bundle.get("iteration", 0)):  # some models ask for the iteration
            losses.update(model(batch))
        sum(losses.values()).backward()

    batch = unpack_batch(bundle["batch"])
    set_random_state(bundle["random_state"])
    first_bad = find_first_bad_tensor(model, batch, run)
    return Replay({name: loss.item() for name, loss in losses.items()}, first_bad)


def _check_bundle(args: argparse.Namespace, bundle: dict[str, Any]) -> None:
    if missing := [key for key in ("model", "batch", "precision", "random_state", "message") if key not in bundle]:
        raise UserError(f"{args.bundle} lacks {', '.join(missing)}; give a nonfinite_iter_*.pth bundle of a training")
    if args.config_file is None:
        beside = Path(args.bundle).parent / "config.yaml"
        raise UserError(
            "name the config of the training: --config-file "
            f"{beside if beside.is_file() else 'FILE'} (a config is code: load only configs you trust)"
        )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="needed: the training's config.yaml; a config is code: load only configs you trust",
    )
    parser.add_argument("opts", nargs="*", metavar="override")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the losses and the first bad tensor; return 1 if there is one, 0 if all is finite this time."""
    args = build_parser().parse_intermixed_args(argv)
    try:
        bundle = load_file(args.bundle)
        _check_bundle(args, bundle)
        run = make_run(load_config(args.config_file, args.opts))
        model = run.build_model()
        prepare_model(model, run.settings)
        replay = replay_bundle(bundle, model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(bundle["message"])
    for name, loss in replay.losses.items():
        print(f"  {name} = {loss:g}")
    print(f"again: {replay.first_bad_tensor}" if replay.first_bad_tensor else "all finite this time")
    return 1 if replay.first_bad_tensor else 0


if __name__ == "__main__":
    sys.exit(main())
