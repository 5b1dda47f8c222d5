"""Hooks of MkDocs: what README and docs link to in the repository becomes a part of the site.

A link is written once, as the git host needs it: relative to the file that it stands in. Every linked file outside of
docs/ gets a place on the site, in turn with the files that it links to:

    README.md                       index.md
    docs/X                          X
    Markdown, pictures, data        their path in the repository
    notebooks                       a page with their text, code and outputs
    code, folders                   source/PATH.md, a page that shows them

A link to a file that does not exist stays as it is; MkDocs refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from notebook_page import notebook_page

ROOT = Path(__file__).parents[2]
MARKDOWN, NOTEBOOK = ".md", ".ipynb"
AS_THEY_ARE = {".jpg", ".png", ".svg", ".json", ".log", ".csv", ".html"}
LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".yaml": "yaml"}

CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
TARGET = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
ELSEWHERE = re.compile(r"[a-z]+:|/")
CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
CELL_CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")
BREAK = re.compile(r"[._/=,(](?=(?!py\b)[A-Za-z])|,(?=\d)|(?<=[a-z])(?=[A-Z][a-z])")


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that README and docs link to."""
    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(MARKDOWN))]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        uri = place_of(path)
        if files.get_file_from_path(uri) is None:
            files.append(_file(path, uri, config))
        linked = set(_linked_paths(path)) - seen
        seen |= linked
        waiting += sorted(linked)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links into the repository into links within the site."""
    here = page.file.src_uri
    origin = origin_of(here)

    def moved(match: re.Match[str]) -> str:
        path = _repository_path(match[1], origin)
        if path is None:
            return match[0]
        return posixpath.relpath(place_of(path), posixpath.dirname(here)) + (match[2] or "")

    return "".join(_in_prose(markdown, lambda prose: TARGET.sub(moved, prose)))


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Let long names in the cells of tables break between their words, and nowhere else."""
    return CELL.sub(lambda cell: CELL_CODE.sub(lambda code: BREAK.sub(r"\g<0><wbr>", code[0]), cell[0]), html)


def place_of(path: str) -> str:
    """Return the place on the site of a path of the repository."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(NOTEBOOK):
        return path.removesuffix(NOTEBOOK) + MARKDOWN
    as_it_is = Path(path).suffix in AS_THEY_ARE | {MARKDOWN} and (ROOT / path).is_file()
    return path if as_it_is else f"source/{path}.md"


def origin_of(uri: str) -> str:
    """Return the path of the repository that a place on the site shows; the inverse of `place_of`."""
    if uri == "index.md":
        return "README.md"
    if uri.startswith("source/"):
        return uri.removeprefix("source/").removesuffix(MARKDOWN)
    notebook = uri.removesuffix(MARKDOWN) + NOTEBOOK
    candidates = (f"docs/{uri}", uri, notebook)
    return next(path for path in candidates if (ROOT / path).is_file())


def _file(path: str, uri: str, config: Any) -> File:
    full = ROOT / path
    if uri.startswith("source/"):
        return File.generated(config, uri, content=_source_page(full, path))
    if full.suffix == NOTEBOOK:
        return File.generated(config, uri, content=notebook_page(full))
    return File.generated(config, uri, abs_src_path=str(full))


def _source_page(full: Path, path: str) -> str:
    """Return a page that shows a file of code, or the names in a folder."""
    head = f"---\nsearch:\n  exclude: true\n---\n# {path.replace('_', chr(92) + '_')}\n\n"
    if full.is_dir():
        names = sorted(entry.name for entry in full.iterdir() if not entry.name.startswith(("_", ".")))
        return head + "\n".join(f"- `{name}`" for name in names)
    fence = "`" * 6
    return f"{head}{fence}{LANGUAGES.get(full.suffix, 'text')}\n{full.read_text(encoding='utf-8')}\n{fence}\n"


def _linked_paths(path: str) -> Iterator[str]:
    """Yield the existing paths of the repository that a file of Markdown links to."""
    if not path.endswith(MARKDOWN):
        return
    for prose in CODE.split((ROOT / path).read_text(encoding="utf-8"))[::2]:
        for match in TARGET.finditer(prose):
            linked = _repository_path(match[1], path)
            if linked is not None:
                yield linked


def _repository_path(target: str, origin: str) -> str | None:
    """Return the path of the repository that the target of a link in the file `origin` means; None for no path."""
    if ELSEWHERE.match(target):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _in_prose(markdown: str, change: Callable[[str], str]) -> Iterator[str]:
    """Yield the pieces of a text; `change` is applied to those that are no code."""
    for index, piece in enumerate(CODE.split(markdown)):
        yield piece if index % 2 else change(piece)
