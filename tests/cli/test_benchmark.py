"""The command `benchmark`, from a config to tables, with tiny models."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_detr.benchmark import contestants, machine, measure
from sparse_detr.cli.main import main

COMMON = Path(__file__).parents[2] / "configs" / "common"
CONFIG = """
from detectron2.config import LazyConfig
from sparse_detr import recipes

dataloader, optimizer, train = LazyConfig.load({coco!r}, ("dataloader", "optimizer", "train"))
lr_multiplier = LazyConfig.load({schedule!r}, "step")
dataloader.test.mapper.augmentations.short_size = 64
train.device = "cpu"
model = recipes.{recipe}(
    backbone=recipes.mobilenet_v2(), num_classes=2, embed_dim=64, encoder_layers=1, decoder_layers=1, num_levels=3,
    num_queries=10, feedforward_dim=32,
)
"""
RETINANET = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_mobilenet_v2_backbone}
  RETINANET: {NUM_CLASSES: 2, IN_FEATURES: [stride32], NUM_CONVS: 1}
  ANCHOR_GENERATOR: {SIZES: [[32]]}
INPUT: {MIN_SIZE_TEST: 64, FORMAT: RGB}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working directory, with two configs and two images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, size in {"wide.png": (64, 96), "tall.png": (90, 64)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    for kind, recipe in {"sparse": "sparse_detr", "dense": "deformable_detr"}.items():
        text = CONFIG.format(coco=str(COMMON / "coco.py"), schedule=str(COMMON / "schedule.py"), recipe=recipe)
        (tmp_path / f"{kind}.py").write_text(text)
    return tmp_path


@pytest.fixture
def quiet(monkeypatch):
    """Let the machine look quiet, whatever it does."""
    set_load(monkeypatch, before=0.0, during=0.0)


@pytest.fixture
def no_flops(monkeypatch):
    """Leave out the count of FLOPs, which takes longest here."""
    monkeypatch.setattr(contestants.Contestant, "gigaflops", lambda self, image: None)


def set_load(monkeypatch, *, before, during):
    monkeypatch.setattr(machine, "sample_load", lambda: before)
    monkeypatch.setattr(machine.CpuUse, "others_since", lambda self, start: during)
    monkeypatch.setattr(machine.ReferenceKernel, "milliseconds", lambda self, repeats=5: 5.0)


def benchmark(kind, *options, images=("images",)):
    own = ["--input", *images] if images else []
    return main(
        [
            "benchmark",
            "--config-file",
            kind,
            "--rounds",
            "2",
            "--batch-sizes",
            "1",
            "2",
            "--output",
            "out",
            *own,
            *options,
        ]
    )


def files(folder):
    return {path.suffix for path in (folder / "out").iterdir()}


def test_it_prints_and_saves_protocol_tables_picture_and_raw_numbers(folder, quiet, capsys):
    assert benchmark("sparse.py", "--budget", "0.2", "0.5") == 0
    output = capsys.readouterr()
    assert files(folder) == {".json", ".csv", ".md", ".png"}
    (path,) = (folder / "out").glob("*.json")
    assert re.fullmatch(r"benchmark_sparse_cpu-\d+threads?_b1-2_64-90x64-96_2rounds", path.stem)
    record = json.loads(path.read_text())
    assert record["disturbance"] is None
    assert [contestant["name"] for contestant in record["contestants"]] == ["sparse, keep 20 %", "sparse, keep 50 %"]
    less, more = (contestant["gigaflops"]["encoder"] for contestant in record["contestants"])
    assert less < more
    assert record["protocol"]["different_images"] == 2
    assert record["protocol"]["padding_share"] > 0  # a wide and a tall image in one batch
    assert (folder / "out" / f"{path.stem}.md").read_text() in output.out
    assert "random weights" in output.out
    with open(path.with_suffix(".csv")) as file:
        table = list(csv.DictReader(file))
    assert {row["part"] for row in table} > {"whole", "backbone", "encoder", "decoder", "rest"}
    whole = [row for row in table if row["part"] == "whole"]
    assert all(float(row["p50_ms"]) <= float(row["p90_ms"]) for row in whole)
    assert all(float(row["peak_mib"]) > 0 for row in whole)


def test_a_model_of_detectron2_alone_is_measured_too(folder, quiet, no_flops):
    (folder / "retina.yaml").write_text(RETINANET)
    assert benchmark("retina.yaml") == 0
    (path,) = (folder / "out").glob("*.json")
    (contestant,) = json.loads(path.read_text())["contestants"]
    assert set(contestant["milliseconds"]["1"][0]) == {"backbone", "head", "rest"}


def test_a_busy_machine_is_refused_before_anything_is_measured(folder, monkeypatch, capsys):
    set_load(monkeypatch, before=1.5, during=0)
    monkeypatch.setattr(measure, "measure_times", lambda *args, **options: pytest.fail("it measured"))
    assert benchmark("sparse.py") == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"nothing was measured: other processes used 1\.50 of \d+ CPUs before the measurement", last)
    assert last.endswith("; stop what else runs, or give --allow-busy for a table that says so")
    assert files(folder) == set()


def test_a_run_that_was_disturbed_keeps_its_raw_numbers_marked_and_prints_no_table(
    folder, no_flops, monkeypatch, capsys
):
    set_load(monkeypatch, before=0, during=0.8)
    assert benchmark("dense.py") == 1
    output = capsys.readouterr().out
    assert "| model |" not in output
    assert re.search(r"no table: other processes used 0\.80 of .*; stop what else runs, or give --allow-busy", output)
    assert files(folder) == {".json"}
    (path,) = (folder / "out").glob("*.json")
    record = json.loads(path.read_text())
    assert "used 0.80 of" in record["disturbance"]
    assert len(record["contestants"][0]["milliseconds"]["1"]) == 2


def test_allow_busy_prints_a_table_that_says_so_first(folder, no_flops, monkeypatch, capsys):
    set_load(monkeypatch, before=1.5, during=0.8)
    assert benchmark("dense.py", "--allow-busy") == 0
    (path,) = (folder / "out").glob("*.md")
    assert path.read_text().startswith("**Not a quiet machine: other processes used 1.50 of")
    assert "--allow-busy" not in path.read_text()
    assert path.read_text() in capsys.readouterr().out


def test_the_model_that_was_timed_is_evaluated(folder, quiet, no_flops, monkeypatch):
    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector

    torch.save({"model": build_detector(load_config("sparse.py")).state_dict()}, "sparse.pth")
    evaluated = []

    def evaluate(run, model):
        evaluated.append(model)
        return {"bbox": {"AP": 12.5}}

    monkeypatch.setattr("sparse_detr.engine.evaluate.evaluate", evaluate)
    timed = []
    original = measure.PartTimer
    monkeypatch.setattr(measure, "PartTimer", lambda parts, device: timed.append(parts) or original(parts, device))
    assert benchmark("sparse.py", "--weights", "sparse.pth", "--evaluate") == 0
    assert timed[0]["encoder"][0] is evaluated[0].encoder
    (path,) = (folder / "out").glob("*.csv")
    assert ",12.5,True" in path.read_text()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "dense.py",
            ["--budget", "0.5"],
            "--budget is 0.5, but this model has a dense encoder, which refines every token",
        ),
        ("sparse.py", ["--budget", "0"], "--budget: keep_ratio must be above 0"),
        ("sparse.py", ["--budget", "0.5", "0.5"], "--budget names a value twice: 0.5 0.5; name each once"),
        ("sparse.py", ["--batch-sizes", "0"], "--batch-sizes 0 cannot be used; give whole numbers, 1 or more"),
        ("sparse.py", ["--rounds", "0"], "--rounds 0 cannot be used"),
        ("sparse.py", ["--threads", "-1"], "--threads -1 cannot be used"),
        ("sparse.py", ["--weights", " "], "--weights is empty; give a checkpoint"),
        ("sparse.py", ["--ema"], "--ema needs a checkpoint; give --weights FILE"),
        ("sparse.py", ["--evaluate"], "--evaluate with random weights says nothing; give --weights FILE"),
        ("sparse.py", ["--rival", "yolo"], "--rival yolo is unknown"),
        ("retina.yaml", ["--optimize"], "--optimize has no form of a RetinaNet"),
    ],
)
def test_options_that_cannot_be_used_are_refused(folder, capsys, kind, options, message):
    (folder / "retina.yaml").write_text(RETINANET)
    assert benchmark(kind, *options) == 2
    assert message in capsys.readouterr().err


def test_without_images_and_data_the_remedy_is_named(folder, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    assert benchmark("sparse.py", images=()) == 2
    assert "name images with --input" in capsys.readouterr().err
