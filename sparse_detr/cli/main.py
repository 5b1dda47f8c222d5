"""Entry of the `sparse-detr` command.

Every other module of this package is a subcommand: the first line of its docstring is the help, and it has
`add_arguments(parser)` and `run(args) -> int`. Only the chosen one is imported, so that packages which only the others
need may be missing.
"""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import sparse_detr.cli
from sparse_detr._detectron2 import HOW_TO_INSTALL
from sparse_detr.errors import UserError

USAGE_ERROR = 2
OPTION = re.compile(r"-(?!\.?\d)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that `argv` names; print a user's error as one message and return 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = parse_arguments(build_parser(chosen), argv)
        return args.run(args)
    except UserError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "detectron2":
            raise
        return _fail(HOW_TO_INSTALL)


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse arguments with config overrides between and after the options, which argparse alone cannot do.

    A word that starts with a minus and a digit is a value of an override, not an option.
    """
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "opts") or any(OPTION.match(word) for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.opts = [*args.opts, *rest]
    return args


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Return a parser with the help of all subcommands and the arguments of `chosen`."""
    parser = argparse.ArgumentParser(prog="sparse-detr", description="Sparse DETR and its relatives in Detectron2.")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for module_name in command_modules():
        command, summary = module_name.replace("_", "-"), _summary(module_name)
        subparser = subparsers.add_parser(command, help=summary, description=summary)
        if command == chosen:
            module = import_module(f"sparse_detr.cli.{module_name}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def command_modules() -> list[str]:
    """Return the names of the modules that are subcommands, in alphabetical order."""
    names = (module.name for module in iter_modules(sparse_detr.cli.__path__))
    return sorted(name for name in names if name != "main" and not name.startswith("_"))


def _summary(module_name: str) -> str:
    """Return the first line of a subcommand's docstring without importing the module."""
    spec = find_spec(f"sparse_detr.cli.{module_name}")
    assert spec is not None, f"no module {module_name}"
    assert spec.origin is not None, f"no source file of {module_name}"
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("%", "%%")


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
