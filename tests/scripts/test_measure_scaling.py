"""The script `measure_scaling.py` measures what is missing, fits lines, and reports what a file has."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.modeling.tiny import build as build_tiny

FACTS = {"cpu": "a CPU", "instructions": "AVX2", "torch": "2.14", "python": "3.11"}
TOKENS_A_MEGAPIXEL, SHARES = 20000, (5, 10, 30, 100)


@pytest.fixture
def script(load_script, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")  # it imports its neighbours
    return load_script("measure_scaling")


@pytest.fixture
def report(script):
    return sys.modules["scaling_report"]


def measured(script, model, form, size, batch=1, percent=None, peak=None):
    """Return a cell whose times follow a rule that a reader can check.

    Encoder: 4 ms, 0.01 ms a token and 0.1 ms a refined token, half of it in the form. Whole: 50 ms, 1 s a megapixel and
    the encoder.
    """
    cell = script.Cell(model, form, *size, batch, percent)
    tokens = TOKENS_A_MEGAPIXEL * cell.megapixels
    kept = tokens * (percent or 100) / 100
    encoder = (4 + 0.01 * tokens + 0.1 * kept) / (2 if form == "fp32" else 1)
    whole = 50 + 1000 * cell.megapixels + encoder
    ms = {"whole": [whole + 5, whole, whole - 5], "encoder": [encoder + 1, encoder, encoder - 1]}
    return script.Measured(script.asdict(cell), ms, tokens, kept, peak)


@pytest.fixture
def points(script):
    cells = [
        measured(script, model, form, size, 1, percent)
        for size in ((100, 100), (500, 500), (1000, 1000))
        for model, percent in (("topk", None), ("sparse", 10))
        for form in ("plain", "fp32")
    ]
    cells += [measured(script, "sparse", form, (500, 500), 1, p) for p in (5, 30, 100) for form in ("plain", "fp32")]
    cells += [
        measured(script, model, form, (100, 100), 8, percent)
        for model, percent in (("topk", None), ("sparse", 10))
        for form in ("plain", "fp32")
    ]
    return cells


def write(folder, name, cells, script):
    record = {"machine": FACTS, "cells": [script.asdict(cell) for cell in cells]}
    (folder / f"scaling_{name}.json").write_text(json.dumps(record))


def rows_of(text):
    return [line.removeprefix("| ").removesuffix(" |") for line in text.splitlines() if line.startswith("| ")]


def test_the_report_of_a_stored_file_has_gains_and_fits(script, points, tmp_path, capsys):
    write(tmp_path, "curves", points, script)
    assert script.main(["curves", "--report", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    rows = rows_of(text)
    # 1 megapixel, form: dense (4 + 200 + 2000) / 2 = 1102 ms of 2152, with 10 % (4 + 200 + 200) / 2 = 202 of 1252.
    assert "1000x1000 | 3254 | 2152 | 1454 | 1252 | 1.72x | 5.46x" in rows
    # 8 images of 0.01 megapixels, plain: 50 + 80 + (4 + 16 + 160) = 310 ms.
    assert next(row for row in rows if row.startswith("8 |")).startswith("8 | 39 | 28 |")
    # 0.25 megapixels are 5000 tokens: 4 + 50 ms, then 100 us for every refined one; half of it in the form.
    assert "encoder, plain, one image of 500x500 | 54 ms + 100 us a kept token | 1.0000 | 0.0%" in rows
    assert "encoder, form, one image of 500x500 | 27 ms + 50 us a kept token | 1.0000 | 0.0%" in rows
    every = (
        "encoder, plain, all images, batches and shares | 4 ms + 10.0 us a token + 100 us a kept token | 1.0000 | 0.0%"
    )
    assert every in rows
    # A megapixel of the dense model: 1000 + 20000 * 0.11 = 3200 ms.
    assert "whole, Deformable DETR, two-stage, plain | 54 ms + 3200 ms a megapixel | 1.0000 | 0.0%" in rows
    assert text.splitlines()[-1].startswith(
        "a CPU (AVX2), PyTorch 2.14, float32, ResNet-50, random weights, one thread"
    )


def test_the_picture_is_drawn_beside_the_readme_and_linked_in_it(script, points, tmp_path):
    write(tmp_path, "curves", points, script)
    readme = tmp_path / "page.md"
    readme.write_text("<!-- table scaling curves -->\n<!-- end scaling curves -->\n")
    assert script.main(["curves", "--report", "--output", str(tmp_path), "--readme", str(readme)]) == 0
    assert "(page/scaling.png)" in readme.read_text()
    with Image.open(tmp_path / "page" / "scaling.png") as picture:
        assert min(picture.size) > 500


def test_curves_that_lack_points_are_reported_as_far_as_they_go(script, points, tmp_path, capsys):
    write(tmp_path, "curves", points[:3], script)
    assert script.main(["curves", "--report", "--output", str(tmp_path)]) == 0
    assert rows_of(capsys.readouterr().out)[2].startswith("100x100 | ")


def test_a_fit_says_what_fits_into_a_memory(script, report):
    cells = [
        measured(script, "dino5", form, size, peak=24 + 1000 * size[0] * size[1] / 1e6)
        for size in ((200, 500), (300, 1000), (400, 2500))
        for form in ("fp32", "training")
    ]
    rows = rows_of(report.large(cells, FACTS))
    # 0.5 GiB: (512 - 24) / 1000 megapixels of 4:25 are 279x1746 pixels; 4 GiB: 4.072 are 3 images of 800x1333.
    fitted = next(row for row in rows if row.startswith("DINO, five levels, form | 24 + 1000 a megapixel, 0% |"))
    assert "| 272x1744 |" in fitted
    assert fitted.endswith("batch of 3")
    assert "DINO, five levels | 24 + 1000 a megapixel, 0% |" in "\n".join(rows)


def test_memory_is_reported_by_form(script, report):
    cells = [
        script.Measured(script.asdict(script.Cell(model, form, 80, 100)), peak_mib=peak)
        for model, form, peak in (
            ("transformers", "plain", 1268.2),
            ("dense", "plain", 605.0),
            ("dense", "fp32", 400.4),
        )
    ]
    rows = rows_of(report.memory(cells, FACTS))
    assert rows[0] == "80x100, peak MiB | plain | form"
    assert rows[2:] == ["Deformable DETR of `transformers` | 1268 | ", "Deformable DETR | 605 | 400"]


def test_numbers_of_another_machine_are_not_added_to(script, points, tmp_path, capsys):
    write(tmp_path, "curves", points, script)
    assert script.main(["curves", "--output", str(tmp_path)]) == 2
    assert "another machine" in capsys.readouterr().err


def test_every_cell_has_a_model_with_a_config_and_every_sparse_one_its_twin(script, report):
    for study in script.STUDIES.values():
        cells = [*study().timed, *study().weighed]
        assert len(set(study().timed)) == len(study().timed)
        assert len(set(study().weighed)) == len(study().weighed)
        for cell in cells:
            config = script.MODELS[cell.model][0] if cell.model in script.MODELS else None
            assert config is None or (script.inference.PROJECTS / config).is_file()
            assert cell.model in report.TITLES
        timed = set(study().timed)
        for cell in timed:
            twin = report.TWINS.get(cell.model)
            assert twin is None or script.Cell(twin, "fp32", cell.height, cell.width, cell.batch) in timed


def test_a_tiny_run_measures_counts_and_goes_on_where_it_was(script, monkeypatch):
    built = []

    def build(bench, name):
        built.append(name)
        bench.plain[name] = build_tiny(name, dtype=torch.float32).eval().transformer()

    monkeypatch.setattr(script.Bench, "_build", build)
    cells = [
        script.Cell(model, form, 64, 96, 2, percent)
        for model, percent in (("topk", None), ("sparse", 10), ("sparse", 50))
        for form in script.FORMS
    ]
    study = script.Study(timed=cells, weighed=cells[:2])
    found, saved = {}, []
    script.measure(study, 1, found, lambda: saved.append(len(found)))
    assert built == ["topk", "sparse"]
    assert all(len(found[cell].times("whole")) == 1 for cell in cells)
    # A pyramid of 8 x 12, 4 x 6, 2 x 3 and 1 x 2 cells in both images: 128 tokens of each; one more than the share.
    assert [found[cell].tokens for cell in cells] == [256] * 6
    assert [found[cell].kept for cell in cells] == [256, 256, 26, 26, 130, 130]
    assert all(found[cell].peak_mib is not None for cell in cells[:2])
    before = len(saved)
    script.measure(study, 1, found, lambda: saved.append(len(found)))
    assert len(saved) == before
    script.measure(study, 2, found, lambda: saved.append(len(found)))
    assert all(len(found[cell].times("encoder")) == 2 for cell in cells)


def test_the_memory_of_a_training_step_has_its_gradients_in_every_call(script, monkeypatch):
    model, gradients = build_tiny("sparse", dtype=torch.float32, num_classes=80), []
    weight = model.encoder.layers[0].ffn.linear1.weight
    weight.register_post_accumulate_grad_hook(lambda weight: gradients.append(float(weight.grad.abs().sum())))
    monkeypatch.setattr(script, "training_model", lambda cell: model)
    cell = script.Cell("sparse", "training", 64, 96, 2, 10)
    found = {}
    script.measure(script.Study(weighed=[cell]), 1, found, lambda: None)
    assert found[cell].peak_mib is not None
    assert found[cell].ms == {}
    assert len(gradients) == 2  # to warm up, and the one that is measured
    assert min(gradients) > 0
    assert weight.grad is None


def test_large_images_have_fewer_rounds(script):
    small, large = script.Cell("topk", "plain", 500, 500), script.Cell("topk", "plain", 1200, 1600)
    study = script.Study(timed=[small, large])
    assert [script.rounds_missing(cell, study, 3, {}) for cell in (small, large)] == [3, 2]
    assert script.rounds_missing(small, script.Study(weighed=[small]), 3, {}) == 0
