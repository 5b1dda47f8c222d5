"""The commands in README and docs exist, with the options that are written there."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from sparse_detr import train
from sparse_detr.cli.main import build_parser, command_modules
from sparse_detr.cli.study import StudyParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("projects/*/README.md"))]
BLOCK = re.compile(r"^ *```(?:bash)?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(sparse-detr [a-z][^`]*)`")


def commands():
    """Return the words of every call of one of our commands, without repetition."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ").splitlines()
        for line in [*blocks, *INLINE.findall(text)]:
            if re.match(r"\s*(sparse-detr|python (?:-m sparse_detr\.cli|train_net\.py)) ", line):
                found.add(tuple(shlex.split(line, comments=True)))
    return sorted(found)


def options_of(words):
    """Return the options of the command that the words call, or of its own command, and the words behind it."""
    if words[:2] == ("python", "train_net.py"):
        parser = argparse.ArgumentParser()
        train.add_arguments(parser)
        return set(parser._option_string_actions), words[2:]
    rest = words[1:] if words[0] == "sparse-detr" else words[3:]
    assert rest[0].replace("-", "_") in command_modules(), rest[0]
    parser = build_parser(rest[0])
    while subparsers := [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]:
        if not rest or rest[0].startswith("-") or rest[0] == "NAME":  # any of them
            break
        parser, rest = subparsers[0].choices[rest[0]], rest[1:]
        if isinstance(parser, StudyParser):
            parser.declare()
    return set(parser._option_string_actions), rest


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_of_the_docs_exists_with_its_options(words):
    options, rest = options_of(words)
    assert [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options] == []


def test_the_docs_call_many_commands():
    called = {words[1] for words in commands() if words[0] == "sparse-detr"}
    assert {"benchmark", "check-data", "convert", "demo", "export", "train"} <= called
