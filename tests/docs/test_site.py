"""The site builds without a warning, loads nothing from the network, and has what README and docs link to."""

import importlib
import logging
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = ["structures", "layers", "ops", "recipes", "inference", "export", "checkpoint", "visualization", "explain"]
PUBLIC += [f"modeling.{stage}" for stage in ("selection", "encoder", "decoder", "queries", "tokenizers")]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOT_LOADED = {"canonical", "next", "prev", "edit"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site strictly and return its folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def hooks():
    sys.path.insert(0, str(ROOT / "scripts" / "site"))
    yield importlib.import_module("hooks")
    sys.path.remove(str(ROOT / "scripts" / "site"))


class Loaded(HTMLParser):
    """The addresses that a browser loads with a page."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in NOT_LOADED:
            self.addresses.append(values.get(LOADED[tag]) or "")


def loaded_by(html):
    parser = Loaded()
    parser.feed(html)
    return parser.addresses


def is_elsewhere(address):
    return re.match(r"(https?:)?//", address) is not None


def test_no_page_loads_anything_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    found = {address for page in pages for address in loaded_by(page.read_text(encoding="utf-8"))}
    assert [address for address in found if is_elsewhere(address)] == []
    assert any(address.endswith(".js") for address in found)


def test_a_script_and_a_font_of_another_host_would_be_noticed():
    html = '<script src="https://host/x.js"></script><link rel="stylesheet" href="//host/font.css"><a href="http://y">'
    assert list(map(is_elsewhere, loaded_by(html))) == [True, True]


def test_no_style_sheet_loads_anything_from_the_network(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("readme", sorted(ROOT.glob("projects/*/README.md")), ids=lambda path: path.parent.name)
def test_the_readme_of_a_paper_is_a_page_with_its_pictures(site, readme):
    page = site / readme.relative_to(ROOT).parent / "index.html"
    html = page.read_text(encoding="utf-8")
    assert re.match(r"# (.+)", readme.read_text(encoding="utf-8"))[1] in html
    for address in loaded_by(html):
        assert (page.parent / address).exists(), address


def test_the_readme_is_the_first_page(site):
    html = (site / "index.html").read_text(encoding="utf-8")
    assert "projects/SparseDETR/index.html" in html
    assert "docs/" not in re.findall(r'href="([^"]*)"', html)


def test_a_link_to_code_leads_to_a_page_that_shows_it(site):
    assert "source/sparse_detr/modeling/__init__.py.html" in (site / "index.html").read_text(encoding="utf-8")
    html = (site / "source/sparse_detr/modeling/__init__.py.html").read_text(encoding="utf-8")
    assert "tokenizers/multi_scale.py" in html


def test_the_notebook_is_a_page(site):
    assert "predictor" in (site / "notebooks" / "start.html").read_text(encoding="utf-8")


def test_every_public_name_is_in_the_api(site):
    documented = inventory(site)
    for package in PUBLIC:
        module = importlib.import_module(f"sparse_detr.{package}")
        for name in module.__all__:
            value = getattr(module, name)
            places = {f"{module.__name__}.{name}", f"{getattr(value, '__module__', '')}.{name}"}
            assert places & documented, places
    assert {"sparse_detr.predictor.Predictor", "sparse_detr.model_zoo.get"} <= documented


def inventory(site):
    """Return the names of the objects that have an entry in the API."""
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("README.md", "index.md"),
        ("docs/conventions.md", "conventions.md"),
        ("projects/DINO/README.md", "projects/DINO/README.md"),
        ("projects/SparseDETR/results/sample.json", "projects/SparseDETR/results/sample.json"),
        ("notebooks/start.ipynb", "notebooks/start.md"),
        ("sparse_detr/predictor.py", "source/sparse_detr/predictor.py.md"),
        ("sparse_detr/ops", "source/sparse_detr/ops.md"),
    ],
)
def test_a_file_of_the_repository_has_a_place_on_the_site_and_back(hooks, path, place):
    assert hooks.place_of(path) == place
    assert hooks.origin_of(place) == path


class Page:
    def __init__(self, uri):
        self.file = type("File", (), {"src_uri": uri})


@pytest.mark.parametrize(
    ("uri", "written", "read"),
    [
        ("index.md", "[a](docs/ops.md#functions)", "[a](ops.md#functions)"),
        ("ops.md", "[a](../ops/README.md)", "[a](ops/README.md)"),
        ("projects/DAT/README.md", "![a](../../docs/overview.jpg)", "![a](../../overview.jpg)"),
        ("index.md", "[`x`](sparse_detr/predictor.py)", "[`x`](source/sparse_detr/predictor.py.md)"),
        ("coming_from/detrex.md", "[a](../ops.md)", "[a](../ops.md)"),
        ("index.md", "[a](#models) [b](https://host/docs/ops.md)", "[a](#models) [b](https://host/docs/ops.md)"),
        ("index.md", "`[a](docs/ops.md)`", "`[a](docs/ops.md)`"),
        ("index.md", "```\n[a](docs/ops.md)\n```", "```\n[a](docs/ops.md)\n```"),
        ("index.md", "[a](docs/no_such_page.md)", "[a](docs/no_such_page.md)"),
    ],
)
def test_links_of_the_git_host_become_links_of_the_site(hooks, uri, written, read):
    assert hooks.on_page_markdown(written, Page(uri), None, None) == read


def test_long_names_in_tables_break_between_words_and_other_code_does_not(hooks):
    html = "<p><code>a.b_c</code></p><table><td><code>TopKSelector.keep_ratio</code></td></table>"
    expected = html.replace("TopKSelector.keep_ratio", "TopKSelector.<wbr>keep_<wbr>ratio")
    assert hooks.on_page_content(html, None, None, None) == expected


def test_broken_links_and_anchors_are_warnings_which_the_strict_build_refuses():
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"))
    assert {*config.validation.links.values(), *config.validation.nav.values()} == {logging.WARNING}
