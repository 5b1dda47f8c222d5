"""The notebook runs on the sample data, and what is stored of its outputs is small and of no machine."""

import importlib
import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "start.ipynb"
SAMPLE = Path(os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample")
# A short training, fewer budgets and choices, and a folder of its own.
SHORT = {
    "ITERATIONS = 150": "ITERATIONS = 2",
    "budgets = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]": "budgets = [0.1, 1.0]; tiles, true_boxes = tiles[:2], true_boxes[:2]",
    "range(10)": "range(2)",
}


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def shortened(cell, output):
    for written, run in {**SHORT, 'OUTPUT = "output/notebook"': f"OUTPUT = {str(output)!r}"}.items():
        cell.source = cell.source.replace(written, run)
    return cell


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (SAMPLE / "train.json").is_file(), reason="make sample-data makes the sample data")
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_DETR_SAMPLE", str(SAMPLE.resolve()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = read()
    for written in SHORT:
        assert sum(written in cell.source for cell in notebook.cells) == 1, written
    notebook.cells = [shortened(cell, tmp_path / "run") for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(ROOT))
    printed = "".join(output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output)
    assert "277 trees" in printed
    assert "10% of the tokens:" in printed
    assert "score of the detection" in printed


def test_the_stored_outputs_are_small_and_without_paths_or_warnings():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert re.findall(r"(?<![\w/.])/(?:home|root|tmp|work|usr|opt|Users)\b", text) == []
    outputs = [output for cell in read().cells for output in cell.get("outputs", [])]
    assert outputs
    assert {output.get("name") for output in outputs} <= {None, "stdout"}
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}


def test_the_page_of_the_notebook_has_its_text_code_and_pictures():
    sys.path.insert(0, str(ROOT / "scripts" / "site"))
    try:
        page = importlib.import_module("notebook_page").notebook_page(NOTEBOOK)
    finally:
        sys.path.pop(0)
    assert page.startswith("# Sparse tokens in ten minutes")
    assert "from sparse_detr import Predictor" in page
    assert "](data:image/jpeg;base64," in page
