import json

import pytest
import torch

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
    start = next(i for i, line in enumerate(lines) if line.startswith("| parts of"))
    rows = {line.split("|")[1].strip(): line for line in lines[:start] if line.startswith("|")}
    assert "100 (92 to 108), 3.00x" in rows["Deformable DETR"]
    assert rows["Sparse DETR, 10 %"].endswith("| 50 (50 to 50), 2.00x |  |  | 6.00x | 10 (10 to 10) | 2.00x | 5.00x |")
    parts = next(line for line in lines[start:] if line.startswith("| Sparse DETR, 10 %"))
    assert "| 10 (20%) |" in parts
    assert parts.endswith("| 2.50x |")  # 100 ms of the dense one against 50 less the 10 of the encoder
    assert rows["`transformers` as shipped"].startswith("| `transformers` as shipped | 300 (300 to 300) |")
    assert lines[-1].startswith("a CPU (AVX512), PyTorch 2.14, one thread, CPU time, clean allocator")


def test_the_summary_says_how_many_times_faster_a_form_is(script):
    rows = script.summary({"machine": MACHINE, "cells": CELLS}, "clean").splitlines()
    assert "| Sparse DETR, 10 %, form / Deformable DETR of `transformers` | 6.00x |" in rows
    assert "| Sparse DETR, 10 %, form / dense form | 2.00x |" in rows
    assert "| the same, encoder alone | 5.00x |" in rows
    assert not any("Focus" in row for row in rows)  # not measured


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


def test_a_compiled_form_stands_beside_the_model_that_it_was_made_of(script):
    facts = {"compile_s": [123.4], "graphs": [1.0], "difference": [2.3e-6], "same": [0.987]}
    cells = {
        "480x640 rho10 plain": {"whole": [100.0]},
        "480x640 rho10 plain compiled for all sizes": {"whole": [80.0], **facts},
        "480x640 rho10 fp32": {"whole": [50.0]},
        "480x640 rho10 fp32 compiled for one size": facts,  # it was stopped before the first round that counts
    }
    lines = script.report_compiled({"machine": MACHINE, "cells": cells}, "system").splitlines()
    assert (
        lines[2] == "| Sparse DETR, 10 %, as it is, 480x640 | all sizes | 100 | 80 | 1.25x | 123 | 1 | 2e-06 | 98.7% |"
    )
    assert lines[4].startswith("a CPU (AVX512), PyTorch 2.14, one thread, CPU time, system allocator, medians with qu")


def test_only_the_option_compiles_and_it_takes_one_model_of_one_size(script, monkeypatch):
    built = []

    def build(cells):
        built.append(list(cells))
        return {cell: lambda image: {"whole": 0.1} for cell in cells}

    monkeypatch.setattr(script, "build", build)
    monkeypatch.setattr("sys.argv", ["x", "--rounds", "1", "--compiled"])
    args = script.parse_arguments()
    assert args.sizes == ["480x640"]
    script.measure("8x8", args, {"cells": {}}, lambda: None)
    forms = ("plain", "plain compiled for one size", "fp32", "fp32 compiled for one size")
    assert built == [[("rho10", form) for form in forms]]


class Means(torch.nn.Module):
    def forward(self, image, sizes):
        height, width = sizes[0]
        corner = image[..., : height // 2, : width // 2]
        return image.mean(2), corner.amax((2, 3))[..., None].expand(-1, -1, 4)


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
@pytest.mark.parametrize("sizes", ["one", "all"])
def test_the_first_call_compiles_once_and_compares_the_results(script, monkeypatch, sizes):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return lambda *values: tuple(found + 0.25 for found in graph.forward(*values))

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", backend)
    torch.compiler.reset()
    compiled = script.Compiled(Means(), sizes)
    assert set(compiled(torch.rand(1, 3, 64, 96))) == {"whole"}
    compiled(torch.rand(1, 3, 64, 96))
    torch.compiler.reset()
    assert len(calls) == 1
    assert compiled.facts["graphs"] == [1]
    assert compiled.facts["difference"] == [pytest.approx(0.25)]
    assert compiled.facts["same"] == [0]
    assert compiled.facts["compile_s"][0] > 0


def test_the_table_of_precisions_has_the_loss_of_each(load_script):
    script = load_script("measure_precision")
    scores = {"as it is": dict.fromkeys(script.METRICS, 50.0), "int8": dict.fromkeys(script.METRICS, 49.4)}
    lines = script.table(scores).splitlines()
    assert lines[2].endswith("| 50.00 | 0.00 |")
    assert lines[3] == "| int8 | 49.40 | 49.40 | 49.40 | 49.40 | 49.40 | 49.40 | 0.60 |"
