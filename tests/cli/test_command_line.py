"""The command line is recorded in `command_line.txt`, so that a change of it shows as a difference in that file.

    python tests/cli/test_command_line.py > tests/cli/command_line.txt

writes the file anew. Users' scripts name these options: think of them, and write a line into CHANGELOG.md.
"""

import argparse
import difflib
import sys
from pathlib import Path

import pytest

import sparse_detr.train
from sparse_detr.cli.main import build_parser, command_modules
from sparse_detr.engine import replay
from sparse_detr.studies import SUMMARIES

FILE = Path(__file__).with_name("command_line.txt")
UPDATE = "python tests/cli/test_command_line.py > tests/cli/command_line.txt"


def parsers():
    """Return every command with its parser."""
    train = argparse.ArgumentParser()
    sparse_detr.train.add_arguments(train)
    yield "train_net.py", train
    for module in command_modules():
        command = module.replace("_", "-")
        subparsers = next(action for action in build_parser(command)._actions if action.dest == "command")
        yield f"sparse-detr {command}", subparsers.choices[command]
        for name in SUMMARIES if command == "study" else ():
            studies = next(action for action in subparsers.choices[command]._actions if action.dest == "study")
            studies.choices[name].declare()
            yield f"sparse-detr study {name}", studies.choices[name]
    yield "python -m sparse_detr.engine.replay", replay.build_parser()


def describe(action):
    """Return one line an option: names and attributes of the parser; the text of help differs between Pythons."""
    facts = {
        "dest": action.dest,
        "default": action.default,
        "choices": None if action.choices is None else list(action.choices),
        "nargs": action.nargs or None,
        "type": getattr(action.type, "__name__", action.type),
        "constant": action.const if isinstance(action, argparse._StoreConstAction) else None,
        "required": action.required if action.option_strings else None,  # of others, versions of Python differ
    }
    words = [f"{name}={value!r}" for name, value in facts.items() if value is not None and value is not False]
    return " ".join([*(action.option_strings or [action.metavar or action.dest]), *words])


def command_line():
    """Return the whole command line as text, options in alphabetical order."""
    lines = []
    for command, parser in parsers():
        options = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        lines += [command, *sorted(f"  {describe(action)}" for action in options), ""]
    return "\n".join(lines)


def test_the_command_line_equals_the_recorded_one():
    expected, found = FILE.read_text().splitlines(), command_line().splitlines()
    changes = "\n".join(difflib.unified_diff(expected, found, "written down", "now", lineterm="", n=0))
    if changes:
        pytest.fail(f"the command line has changed; if it should, run\n  {UPDATE}\n{changes}", pytrace=False)


def test_names_defaults_types_and_choices_are_recorded():
    text = command_line()
    assert "--resume dest='resume' constant=True" in text
    assert "--score-threshold dest='score_threshold' default=0.3 type='float'" in text
    assert "choices=[91, 80]" in text


if __name__ == "__main__":
    sys.stdout.write(command_line())
