"""The page of the behaviors lists every pair of values that the code has, and nothing else."""

import re
from pathlib import Path

import pytest

from sparse_detr.recipes.meta_arch import RECIPES
from tests.docs.pairs import all_pairs, named_options, origins_of, pairs_of

PAGE = (Path(__file__).parents[2] / "docs" / "released_and_exact.md").read_text(encoding="utf-8")
COMMON = {"ProposalGenerator.border", "GeneralizedDETR.supervise_surplus_rows"}


def rows(heading):
    """Return the cells of every row of the tables below a heading, without their heads."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert lines, heading
    return lines


def first_code(cell):
    return re.match(r"`([^`]+)`", cell)[1]


def test_the_page_lists_every_pair_of_the_code_with_its_values():
    listed = {tuple(map(first_code, cells)) for cells in rows("Every pair")}
    assert listed == {tuple(pair) for pair in all_pairs()}


def test_a_pair_is_listed_once():
    listed = [tuple(map(first_code, cells)) for cells in rows("Every pair")]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", RECIPES)
def test_the_page_says_what_released_changes_in_a_model(name):
    by_model = {first_code(model): set(re.findall(r"`([^`]+)`", options)) for model, options in rows("By model")}
    assert by_model[name] | COMMON == {pair.option for pair in pairs_of(name, origins_of(name)[0])}


def test_every_option_with_named_values_is_on_the_page_with_all_its_values():
    listed = {}
    for options, *values in rows("Every pair") + rows("Other options with named values"):
        for option in re.findall(r"`([^`]+)`", options):
            listed.setdefault(option, set()).update(re.findall(r"`([\w-]+)`", " ".join(values)))
    for option, values in named_options().items():
        assert set(values) <= listed.get(option, set()), option


def test_the_two_behaviors_of_detr_differ_by_its_map_alone():
    pairs = {pair.option: pair[1:] for pair in pairs_of("DETR", "official") if pair.option not in COMMON}
    assert pairs == {"SingleScaleTokenizer.padding": ("exact", "released")}
