"""The notebooks run on the sample data, and what is stored of its outputs is small and of no machine."""

import importlib
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
SAMPLE = Path(os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample")
# Of each: a short training, fewer budgets and choices, a folder of its own; and what it prints.
SHORT = {
    "start": {
        "ITERATIONS = 150": "ITERATIONS = 2",
        "budgets = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]": "budgets = [0.1, 1.0]; tiles, true_boxes = tiles[:2], true_boxes[:2]",  # noqa: E501
        "range(10)": "range(2)",
        'OUTPUT = "output/notebook"': "OUTPUT = {output!r}",
    },
    "your_data": {
        "ITERATIONS = 300": "ITERATIONS = 5",
        'OUTPUT = Path("output/your_data")': "OUTPUT = Path({output!r})",
    },
}
PRINTED = {
    "start": ["277 trees", "10% of the tokens:", "score of the detection"],
    "your_data": [
        "54 pictures, 946 boxes",
        "augmentation preset: aerial",
        "report.html",
        "detections in 9 of 9 pictures",
        "| classes | tree |",
    ],
}


def read(name):
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def shortened(cell, name, output):
    for written, run in SHORT[name].items():
        cell.source = cell.source.replace(written, run.format(output=str(output)))
    return cell


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (SAMPLE / "train.json").is_file(), reason="make sample-data makes the sample data")
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DETR_SAMPLE", str(SAMPLE.resolve()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read(name)
    for written in SHORT[name]:
        assert sum(written in cell.source for cell in notebook.cells) == 1, written
    notebook.cells = [shortened(cell, name, tmp_path / "run") for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(ROOT))
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    for words in PRINTED[name]:
        assert words in printed


@pytest.mark.parametrize("name", SHORT)
def test_the_stored_outputs_are_small_and_without_paths_or_warnings(name):
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert re.findall(r"(?<![\w/.])/(?:home|root|tmp|work|usr|opt|Users)\b", text) == []
    outputs = [output for cell in read(name).cells for output in cell.get("outputs", [])]
    assert outputs
    assert {output.get("name") for output in outputs} <= {None, "stdout"}
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}


@pytest.mark.parametrize(
    ("name", "title", "code"),
    [
        ("start", "# Sparse tokens in ten minutes", "from sparse_detr import Predictor"),
        ("your_data", "# Your data in ten minutes", 'run("check-data", "--train", DATA'),
    ],
)
def test_the_page_of_a_notebook_has_its_text_code_and_pictures(name, title, code):
    sys.path.insert(0, str(ROOT / "scripts" / "site"))
    try:
        page = importlib.import_module("notebook_page").notebook_page(NOTEBOOKS / f"{name}.ipynb")
    finally:
        sys.path.pop(0)
    assert page.startswith(title)
    assert code in page
    assert "](data:image/jpeg;base64," in page
