"""The option of commands that run a model with another budget."""

import argparse

HELP = (
    "how many tokens the encoder refines, in place of the config's budget: 0.3 for 30 %%; levels:0.25,0.5,1 for a "
    "share of every level, fine to coarse; mass:0.9 for as many as hold 90 %% of an image's predicted saliency"
)
EFFORT_HELP = "; with +decoder:2 or +queries:100 also fewer decoder layers or queries, as in 0.3+decoder:2"
TIME_HELP = "; ms:30 for the best one within 30 ms that `sparse-detr sweep` measured"


def add_budget(parser: argparse.ArgumentParser, *, several: bool = False, tokens_alone: bool = False) -> None:
    """Declare `--budget`.

    Args:
        several: it takes more than one.
        tokens_alone: it takes no decoder layers and queries.
    """
    text = HELP + ("" if tokens_alone else EFFORT_HELP) + TIME_HELP
    options = {"nargs": "+", "default": []} if several else {}
    parser.add_argument("--budget", "--keep-ratio", metavar="B", help=text, **options)
