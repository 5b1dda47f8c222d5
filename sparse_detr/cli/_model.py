"""The options of commands that load a model."""

import argparse

CONFIG_IS_CODE = "a config is code: load only configs you trust"


def add_model(
    parser: argparse.ArgumentParser,
    *,
    config: str = "config of the model",
    random_weights: str | None = None,
    weights_inside: bool = False,
) -> None:
    """Declare `--config-file`, `--weights` and `--ema`.

    Args:
        config: what the config is of.
        random_weights: what random weights are good for; with it, `--weights` may be left out.
        weights_inside: what `--config-file` names may hold the weights; then `--weights` may be left out.
    """
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help=f"{config}, lazy or yaml; {CONFIG_IS_CODE}"
    )
    weights = "checkpoint of a training or of `convert`"
    if random_weights is not None:
        weights += f" (default: random weights{random_weights})"
    if weights_inside:
        weights += " (default: those that the config names or the file holds)"
    may_be_missing = weights_inside or random_weights is not None
    parser.add_argument("--weights", required=not may_be_missing, metavar="FILE", help=weights)
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of the checkpoint")


def weights_text(path: str | None, *, averaged: bool) -> str:
    """Return the weights that a result is of, as people read them; "" for random ones."""
    return f"{path} (averaged)" if path and averaged else path or ""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Declare `--opts`."""
    parser.add_argument("--opts", nargs="*", default=[], metavar="override", help="overrides in the config's own style")
