"""The option of commands that run a model in its inference form."""

import argparse

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def add_optimize(parser: argparse.ArgumentParser) -> None:
    """Declare `--optimize`."""
    parser.add_argument(
        "--optimize",
        nargs="?",
        const="fp32",
        choices=PRECISIONS,
        help="run the model in its inference form, which is faster; fp32 if no precision is named",
    )
