"""Rounds are kept and paired, and the table says which AP was published for which image size."""

import argparse
import json

import pytest

from sparse_detr.errors import UserError

MACHINE = {"cpu": "a CPU", "cpus": 2, "instructions": "AVX2", "torch": "2.14", "allocator": "glibc"}
ROUNDS = {
    "480x640": [
        {"rho10 plain": 100.0, "rho10 fp32": 50.0, "retinanet plain": 150.0},
        {"rho10 plain": 300.0, "rho10 fp32": 100.0, "retinanet plain": 310.0, "rf-detr-nano plain": 40.0},
    ],
    "800x1066": [{"rho10 fp32": 400.0, "retinanet plain": 1000.0}],
}


@pytest.fixture
def script(load_script):
    pytest.importorskip("detectron2")
    return load_script("compare_detectors")


@pytest.fixture
def results():
    return {"machine": MACHINE, "load": [0.1, 0.3, 0.2], "rounds": json.loads(json.dumps(ROUNDS))}


def test_the_table_has_a_column_for_every_size_and_a_row_for_every_form(script, results):
    lines = script.report(results).splitlines()
    assert lines[0] == "|  | published AP | tested at | source | ms at 480x640 | ms at 800x1066 |"
    source = "Sparse DETR's README, 50 epochs"
    assert lines[2] == f"| Sparse DETR, 10 % | 45.3 | 800x1333 | {source} | 200 |  |"
    assert lines[3] == f"| Sparse DETR, 10 %, optimised | 45.3 | 800x1333 | {source} | 75 | 400 |"
    assert lines[5] == "| RF-DETR Nano | 48.4 | 384x384 | RF-DETR's README | 40 |  |"
    assert "other processes used 0.20 of 2 CPUs" in lines[-3]


def test_ratios_are_medians_of_the_ratios_of_every_round(script, results):
    ratios = script.ratios_text(results["rounds"]).splitlines()
    # 150 / 50 = 3 and 310 / 100 = 3.1
    assert ratios == [
        "- 480x640: Sparse DETR, 10 %, optimised, against RetinaNet as it is: 3.05x",
        "- 800x1066: Sparse DETR, 10 %, optimised, against RetinaNet as it is: 2.50x",
    ]


def test_quartiles_are_printed_from_four_values_on(script):
    assert script.spread([1.0, 2.0, 4.0]) == "2"
    assert script.spread([10.0, 20.0, 30.0, 40.0]) == "25 (12 to 38)"
    assert script.spread([]) == ""


def test_ap_belongs_to_a_time_only_at_the_size_of_the_published_test(script):
    retinanet, nano = script.DETECTORS["retinanet"], script.DETECTORS["rf-detr-nano"]
    assert not script.tested_so(retinanet, "480x640")
    assert script.tested_so(retinanet, "800x1066")
    assert script.tested_so(nano, "480x640")  # it runs at its own size


class Recorder:
    """Stands for a contestant and notes the sizes of its images."""

    def __init__(self):
        self.shapes = []

    def prepare(self, batch):
        return batch

    def detect(self, batch):
        self.shapes.append(tuple(batch[0]["image"].shape))


def test_only_missing_rounds_are_measured_and_all_are_saved(script, results, monkeypatch):
    built, saved = {}, []

    def build(cells):
        built.update({cell: Recorder() for cell in cells})
        return built

    monkeypatch.setattr(script, "build", build)
    args = argparse.Namespace(
        detectors=["rho10", "rf-detr-nano"], forms=["plain", "fp32"], rounds=3, sizes=["480x640", "16x24"]
    )
    results["rounds"]["16x24"] = [{"rho10 plain": 1.0, "rho10 fp32": 1.0, "rf-detr-nano plain": 1.0}] * 3
    script.measure_all(args, results, lambda: saved.append(json.dumps(results)))
    # one warm-up and what is missing: one round of both forms, two of RF-DETR
    assert {cell: len(found.shapes) for cell, found in built.items()} == {
        ("rho10", "plain"): 2,
        ("rho10", "fp32"): 2,
        ("rf-detr-nano", "plain"): 3,
    }
    assert built["rho10", "plain"].shapes[0] == (3, 480, 640)
    assert len(saved) == 2
    assert [sorted(found) for found in results["rounds"]["480x640"][2:]] == [
        ["rf-detr-nano plain", "rho10 fp32", "rho10 plain"],
        ["rf-detr-nano plain"],
    ]
    assert len(results["load"]) == 5


def test_results_of_another_machine_are_not_mixed(script, results, tmp_path):
    path = tmp_path / "detectors_system.json"
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match="is of another machine, .*; move it away, or give another --output"):
        script.read_results(path, must_match=True)
    assert script.read_results(path, must_match=False) == results


def test_a_report_fills_a_readme_and_links_the_picture(script, results, tmp_path, monkeypatch):
    readme, output = tmp_path / "docs.md", tmp_path / "results"
    readme.write_text("<!-- table detectors -->\nnot measured yet\n<!-- end detectors -->\n")
    output.mkdir()
    (output / "detectors_system.json").write_text(json.dumps(results))
    monkeypatch.setattr("sys.argv", ["x", "--report", "--output", str(output), "--readme", str(readme)])
    assert script.main() == 0
    assert "![Time beside published AP](results/detectors_system.png)" in readme.read_text()
    assert (output / "detectors_system.png").stat().st_size > 10_000
    assert "(detectors_system.png)" in (output / "detectors_system.md").read_text()


def test_every_config_of_ours_is_there(script):
    ours = [detector for detector in script.DETECTORS.values() if detector.kind == "ours"]
    assert len(ours) == 6
    assert all((script.ROOT / "projects" / detector.config).is_file() for detector in ours)
