"""READMEs of the projects name all configs, and name only things that exist."""

import re
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = sorted(ROOT.glob("projects/*/README.md"))
SECTIONS = ["From the paper to the code", "Configs", "Commands", "Where we differ from the public code"]
SECTIONS += ["Measured here", "Citation"]


def each_readme(test):
    return pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)(test)


def expanded(name):
    """Expand a name with `{12,24}` into the names with 12 and with 24."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return {"".join(choice) for choice in product(*parts)}


def test_every_project_has_a_readme():
    assert {path.parents[1].name for path in ROOT.glob("projects/*/configs/*.*")} == {p.parent.name for p in READMES}


@each_readme
def test_every_config_of_a_project_is_in_the_table_of_its_readme(readme):
    configs = readme.read_text().partition("## Configs")[2].partition("## Commands")[0]
    named = {name for text in re.findall(r"`([\w{},]+)`", configs) for name in expanded(text)}
    assert {path.stem for path in readme.parent.glob("configs/*.py")} <= named


@each_readme
def test_every_config_that_a_readme_names_exists(readme):
    text = readme.read_text()
    files = set(re.findall(r"(?:configs|projects)/[\w/-]+\.(?:py|yaml)", text))
    assert files
    assert [file for file in files if not (ROOT / file).is_file() and file != "configs/NAME.py"] == []
    own = set(re.findall(r"`(\w+\.yaml)`", text)) - {"NAME.yaml"}
    assert own == {path.name for path in readme.parent.glob("configs/*.yaml")}


@each_readme
def test_all_readmes_have_the_same_sections(readme):
    assert re.findall(r"^## (.*)", readme.read_text(), re.M) == SECTIONS


@each_readme
def test_a_readme_links_to_files_and_headings_that_exist(readme):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", readme.read_text()):
        path, _, heading = link.partition("#")
        assert (readme.parent / path).exists(), link
        headings = re.findall(r"^#+ (.*)", (readme.parent / path).read_text(), re.M) if heading else []
        assert not heading or heading in [title.lower().replace(" ", "-") for title in headings], link


@each_readme
def test_the_classes_for_the_terms_of_a_paper_are_in_the_files_beside_them(readme):
    table = readme.read_text().partition("## From the paper to the code")[2].partition("## Configs")[0]
    named_before = ""
    for row in re.findall(r"^\| .* \|$", table, re.M)[1:]:
        _, classes, files = row.strip("| ").split(" | ")
        code = named_before = "\n".join(map(code_at, places_of(files))) or named_before  # "the same"
        for name in set(re.findall(r"`(\w+)[(`]", classes)) - {"detector"}:
            assert re.search(rf"^(class|def) {name}\b", code, re.M), (name, files)


def places_of(files):
    """Yield the files and folders of a cell; a name without a folder is in that of the file before it."""
    folder = ROOT / "sparse_detr"
    for file in re.findall(r"`([\w/.]+)`", files):
        places = (ROOT / file, ROOT / "sparse_detr" / file, folder / file)
        (found,) = {place for place in places if place.exists()} or {None}
        assert found, file
        folder = found.parent
        yield found


def code_at(place):
    return "\n".join(path.read_text() for path in (place.rglob("*.py") if place.is_dir() else [place]))
