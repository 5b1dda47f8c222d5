import json

import pytest

WHOLE = {"whole": [100.0, 110.0, 90.0, 100.0], "encoder": [50.0, 50.0, 50.0, 50.0]}
FASTER = {"whole": [50.0, 50.0, 50.0, 50.0], "encoder": [10.0, 10.0, 10.0, 10.0]}
CELLS = {
    "480x640 transformers plain": {"whole": [300.0, 300.0, 300.0, 300.0]},
    "480x640 dense plain": WHOLE,
    "480x640 topk fp32": WHOLE,
    "480x640 rho10 plain": WHOLE,
    "480x640 rho10 fp32": FASTER,
}
MACHINE = {"cpu": "a CPU", "instructions": "AVX512", "torch": "2.14", "python": "3.11"}


@pytest.fixture
def script(load_script):
    return load_script("measure_inference")


def test_the_report_compares_with_the_peer_the_plain_model_and_the_dense_one(script):
    lines = script.report({"machine": MACHINE, "cells": CELLS}, "clean").splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}
    assert "100 (92 to 108), 3.00x" in rows["Deformable DETR"]
    assert rows["Sparse DETR, 10 %"].endswith("| 50 (50 to 50), 2.00x |  |  | 10 (10 to 10) | 2.00x | 5.00x |")
    assert rows["`transformers` as shipped"].startswith("| `transformers` as shipped | 300 (300 to 300) |")
    assert lines[-1].startswith("a CPU (AVX512), PyTorch 2.14, one thread, CPU time, clean allocator")


def test_every_model_has_a_config_and_every_sparse_one_a_dense_one(script):
    assert set(script.BASE) < set(script.MODELS)
    assert set(script.BASE.values()) < set(script.MODELS)
    assert all((script.PROJECTS / config).is_file() for _, config in script.MODELS.values())


def test_rounds_that_were_measured_are_not_measured_again(script, monkeypatch):
    built = []

    def build(cells):
        built.append(list(cells))
        return {cell: lambda image: {"whole": 0.1} for cell in cells}

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr("sys.argv", ["x", "--sizes", "8x8", "--models", "dense", "--forms", "plain", "fp32"])
    args = script.parse_arguments()
    args.rounds = 2
    results, saved = {"cells": {"8x8 dense plain": {"whole": [1.0, 2.0]}}}, []
    for _ in range(2):
        script.measure("8x8", args, results, lambda: saved.append(json.dumps(results)))
    assert built == [[("dense", "fp32")]]
    assert results["cells"]["8x8 dense fp32"]["whole"] == [100.0, 100.0]
    assert len(saved) == 3


def test_the_table_of_precisions_has_the_loss_of_each(load_script):
    script = load_script("measure_precision")
    scores = {"as it is": dict.fromkeys(script.METRICS, 50.0), "int8": dict.fromkeys(script.METRICS, 49.4)}
    lines = script.table(scores).splitlines()
    assert lines[2].endswith("| 50.00 | 0.00 |")
    assert lines[3] == "| int8 | 49.40 | 49.40 | 49.40 | 49.40 | 49.40 | 49.40 | 0.60 |"
