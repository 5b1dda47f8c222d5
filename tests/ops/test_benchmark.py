"""The benchmark of the op and the GPU check: they run, and their numbers are right."""

import ctypes
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.ops.reference import attend, relative_error

OPS = Path(__file__).parents[2] / "ops"


@pytest.fixture(scope="module", autouse=True)
def tools():
    """Put `ops/`, which is no package, on the path."""
    sys.path.insert(0, str(OPS))
    yield
    sys.path.remove(str(OPS))


def load(name):
    return importlib.import_module(name)


def run(script, *arguments):
    command = [sys.executable, str(OPS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def task(times, *, form="plain", backward=False, **overrides):
    kinds = {"fair": "pytorch", "cpu": "ours", "rival": "peer", "eager + cpu": "ours", "eager + fair": "pytorch"}
    kinds.update({"cpu fused": "ours", "cpu, loads in L1": "floor", "reference": "ours", "scatter_add": "pytorch"})
    record = {
        "form": form,
        "case": "Lq = S",
        "direction": "forward + backward" if backward else "forward",
        "threads": 1,
        "group": f"{form} form, float32, 1 thread, thread CPU time",
        "compulsory_bytes": 30_000_000,
        "milliseconds": times,
        "kinds": {name: kinds[name] for name in times},
    }
    return {**record, **overrides}


def results(*tasks, **overrides):
    machine = {"gpu": None, "cpu": "A CPU", "cores": 2, "cpu_path": "avx2", "torch": "2", "python": "3"}
    machine.update({"load_average_before": 0.1, "commit": "abc", "date": "2026-01-02"})
    record = {"machine": machine, "allocator": "clean", "repetitions": 3, "quick": False, "bandwidth": {"1": 10.0}}
    return {**record, "tasks": list(tasks), "memory": [], "missing": {}, "failed": {}, **overrides}


def test_a_ratio_is_the_median_over_repetitions_with_its_quartiles():
    record = task({"fair": [10.0, 30.0, 20.0], "cpu": [5.0, 3.0, 5.0]})
    # 2, 10 and 4 times faster; the ratio of the medians is 4 too, that of the means 4.6
    assert load("benchmark.publish").ratio(record, "fair", "cpu") == (4.0, 3.0, 7.0)


def test_tables_hold_times_ratios_and_the_share_of_the_bounds():
    times = {
        "fair": [10.0, 30.0, 20.0],
        "cpu": [5.0, 3.0, 5.0],
        "rival": [10.0] * 3,
        "cpu, loads in L1": [2.5, 1.5, 2.5],
    }
    text = load("benchmark.publish").markdown(results(task(times)))
    assert "|  | fair | cpu | rival |" in text
    assert "| Lq = S, forward | 20 | 5 (4x) | 10 (2x) |" in text
    assert "| Lq = S, forward | 4x (3 to 7) | 2x (2 to 2.67) |" in text
    # 30 MB at 10 GB/s take 3 of 5 ms, and loads from L1 half of the time
    assert "|  | MB | ms | cpu | ms in L1 | cpu, of that |" in text
    assert "| Lq = S, forward | 30 | 3 | 60 % | 2.5 | 50 % |" in text


def test_long_times_have_no_exponent():
    text = load("benchmark.publish").markdown(results(task({"fair": [2304.4], "cpu": [1.0]})))
    assert "| 2304 | 1 (2304x) |" in text


def test_the_fused_form_is_compared_with_the_same_kernel_after_eager_samples():
    times = {"eager + fair": [8.0], "eager + cpu": [4.0], "cpu fused": [1.0], "rival": [2.0]}
    text = load("benchmark.publish").markdown(results(task(times, form="fused")))
    assert "|  | than eager + fair | than eager + cpu | than rival |" in text
    assert "| Lq = S, forward | 8x (8 to 8) | 4x (4 to 4) | 2x (2 to 2) |" in text


def test_the_brief_report_has_one_number_of_threads_and_no_quartiles():
    times = {"fair": [12.0], "cpu": [6.0], "cpu, loads in L1": [3.0], "rival": [18.0]}
    both = results(task(times), task(times, threads=2, group="2 threads"), bandwidth={"1": 10.0, "2": 10.0})
    report = load("benchmark.publish")
    assert report.markdown(both).count("median of paired ratios") == 2
    brief = report.markdown(both, brief=True)
    assert brief.count("| Lq = S, forward |") == 2
    assert "| Lq = S, forward | 12 | 6 (2x) | 18 (0.667x) |" in brief
    assert "|  | than rival | of bandwidth | of L1 |" in brief
    assert "| Lq = S, forward | 3x | 50 % | 50 % |" in brief


def test_the_brief_report_leaves_out_the_attention_map():
    record = task({"scatter_add": [2.0], "cpu": [1.0]}, form="splat")
    report = load("benchmark.publish")
    assert "| Lq = S, forward | 2 | 1 (2x) |" in report.markdown(results(record))
    assert "Lq = S" not in report.markdown(results(record), brief=True)


def test_with_all_samples_in_one_place_the_maps_fit_the_first_cache():
    cases = load("benchmark.cases")
    inputs = cases.make_inputs(cases.CASES[4].tiny(), seed=0)
    there = inputs.in_one_spot()
    assert there.levels.shapes == ((4, 4),) * 4
    assert there.value.shape == (1, 64, 8, 32)
    assert there.locations.shape == inputs.locations.shape
    assert there.weights is inputs.weights


def test_memory_has_a_column_for_each_direction_and_an_empty_cell_without_a_measurement():
    common = {"dtype": "float32", "case": "Lq = S", "form": "plain"}
    records = [
        {**common, "variant": "cpu", "direction": "forward", "mib": 22.19},
        {**common, "variant": "cpu", "direction": "forward + backward", "mib": 73.97},
        {**common, "variant": "rival", "direction": "forward", "mib": 19.7},
    ]
    text = load("benchmark.publish").markdown(results(memory=records))
    assert "| cpu | 22.2 | 74.0 |" in text
    assert "| rival | 19.7 | - |" in text


def test_the_readme_of_the_op_has_the_markers():
    for device in ("cpu", "cuda"):
        assert f"<!-- table benchmark {device} -->" in (OPS / "README.md").read_text()


def test_encoder_samples_lie_around_their_own_cells_and_decoder_samples_in_their_boxes():
    cases = load("benchmark.cases")
    encoder = cases.make_inputs(cases.Case("", shapes=((100, 50),)), seed=0)
    # Point 0 of head 0 is one pixel to the right, plus noise.
    pixels = (encoder.locations - encoder.reference_points[:, :, None, :, None]) * torch.tensor([50.0, 100.0])
    assert pixels[0, :, 0, 0, 0].mean(0).tolist() == pytest.approx([1, 0], abs=0.05)
    decoder = cases.make_inputs(cases.Case("", boxes=50, shapes=((8, 8),)), seed=0)
    assert decoder.reference_points.shape == (1, 50, 1, 4)
    assert decoder.weights.sum((-2, -1)).allclose(torch.ones(1))


def test_a_share_of_the_tokens_are_queries_in_random_order_without_repetition():
    cases = load("benchmark.cases")
    case = cases.Case("", share=0.5, shapes=((6, 10),))
    points = cases.make_inputs(case, seed=0).reference_points[0, :, 0]
    assert points.shape == points.unique(dim=0).shape == (30, 2)
    assert not points.equal(points.unique(dim=0))


def test_compulsory_bytes_count_every_tensor_once_in_each_direction():
    cases = load("benchmark.cases")
    inputs = cases.make_inputs(cases.Case("", boxes=3, shapes=((2, 5),)), seed=0)
    value, output = 10 * 8 * 32 * 4, 3 * 8 * 32 * 4
    samples = 3 * 8 * 4 * 3 * 4  # x, y and a weight
    references = 3 * 4 * 4
    assert cases.compulsory_bytes(inputs, form="plain", backward=False) == value + samples + output
    large = cases.make_inputs(cases.Case("", boxes=1, shapes=((50, 50),)), seed=0)
    touched = 4 * 8 * 4 * 32 * 4  # four cells a sample: fewer than there are
    expected = touched + samples // 3 + output // 3
    assert cases.compulsory_bytes(large, form="plain", backward=False) == expected
    # The backward pass reads the inputs and the gradient of the output, and writes a gradient for every input.
    assert cases.compulsory_bytes(inputs, form="plain", backward=True) == 3 * (value + samples) + 2 * output
    fused = cases.compulsory_bytes(inputs, form="fused", backward=True)
    assert fused == 3 * (value + samples) + 2 * (output + references)


@pytest.mark.parametrize("name", ["fair", "official"])
def test_the_composite_forms_equal_the_formula(name):
    cases, composite = load("benchmark.cases"), load("benchmark.peers.composite")
    inputs = cases.make_inputs(cases.Case("", boxes=2, shapes=((3, 4), (2, 2))), seed=0, dtype=torch.float64)
    output = getattr(composite, name)(inputs.value, inputs.levels, inputs.locations, inputs.weights)
    expected = attend(inputs.value, inputs.levels.shapes, inputs.locations, inputs.weights)
    assert relative_error(output, expected) < 1e-12


def test_a_missing_peer_is_named_with_the_command_that_installs_it(monkeypatch):
    catalog = load("benchmark.catalog")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, missing = catalog.variants_of("plain", "cpu")
    assert "fair" in [variant.name for variant in found]
    assert missing["torch-ms-deform-attn"] == "not installed: pip install torch-ms-deform-attn==0.1.1"
    assert "HF transformers" in missing


def test_a_failing_peer_is_left_out_but_our_own_failure_fails_the_run():
    benchmark, variants, timing = load("benchmark.command"), load("benchmark.variants"), load("benchmark.timing")

    def broken(*arguments):
        raise RuntimeError("no such dtype")

    found = {"missing": {}, "failed": {}}
    one = timing.Task(load("benchmark.cases").CASES[0], "plain", False, "cpu", "float32", 1)
    assert not benchmark.can_run(variants.Variant("rival", "peer", broken), one, found)
    assert not benchmark.can_run(variants.Variant("cpu", "ours", broken), one, found)
    assert found["missing"] == {"rival, plain, float32, forward": "RuntimeError: no such dtype"}
    assert list(found["failed"]) == ["cpu, plain, float32, forward"]


def test_peak_memory_counts_only_memory_that_the_call_maps():
    memory = load("benchmark.peak_memory")
    if not memory.can_measure("cpu"):
        pytest.skip("needs Linux with glibc")
    there = torch.ones(2**24)  # 64 MiB
    _ = there + 1, there.sum()  # the first call of an operator maps its code too
    # Three times: what other threads of the process take in the meantime counts too.
    assert min(memory.resident_peak(lambda: there + 1) for _ in range(3)) == pytest.approx(64, rel=1 / 16)
    assert min(memory.resident_peak(lambda: there.sum()) for _ in range(3)) < 1


def test_the_heads_of_a_case_are_those_of_its_inputs():
    cases = load("benchmark.cases")
    case = next(case for case in cases.HEAD_CASES if case.name == "M 16, D 8")
    inputs = cases.make_inputs(case.tiny(), seed=0)
    assert inputs.value.shape == (1, 128, 16, 8)
    assert inputs.locations.shape == (1, 38, 16, 4, 4, 2)
    assert inputs.grad_output.shape == (1, 38, 128)


def test_the_gain_of_a_patch_is_the_median_of_paired_ratios():
    times = {"as it is": [10.0, 30.0, 20.0], "patched": [5.0, 10.0, 20.0]}
    row = load("measure_patch").cells("a model", {"milliseconds": times, "relative_difference": 1e-7})
    assert row == ["a model", "20", "10", "2.00x (1.50 to 2.50)", "1e-07"]


def test_a_tiny_run_writes_json_tables_and_plots(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table benchmark cpu -->\n<!-- end benchmark cpu -->\n")
    output = tmp_path / "tiny.json"
    arguments = ["--quick", "--output", str(output), "--readme", str(readme), "--threads", "1", "--cases", "decoder"]
    done = run("benchmark", *arguments, "--no-memory", "--variants", "reference", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["quick"]
    assert found["allocator"] == "clean"
    assert [(task["form"], task["backward"]) for task in found["tasks"]] == [
        ("plain", False),
        ("plain", True),
        ("fused", False),
        ("fused", True),
        ("splat", False),
    ]
    assert all(len(ms) == 2 and min(ms) > 0 for task in found["tasks"] for ms in task["milliseconds"].values())
    assert max(max(errors, default=0) for errors in found["largest_relative_errors"].values()) < 1e-5
    assert "these numbers say nothing" in readme.read_text()
    assert "(tiny_plain_form_float32_1_thread.png)" in readme.read_text()
    assert "| decoder, 300 queries, forward |" in (tmp_path / "tiny.md").read_text()
    plots = sorted(tmp_path.glob("*.png"))
    assert len(plots) == 3
    assert min(Image.open(plots[-1]).size) > 200


def test_without_a_gpu_the_check_tells_so_and_what_can_be_run():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("check_gpu.py")
    assert done.returncode == 2
    assert "--interpreter" in done.stderr


def test_the_check_reports_what_failed_and_what_was_skipped(tmp_path):
    check = load("check_gpu")

    def fail():
        raise check.Failed("first line\nlast line")

    def skip():
        raise check.Skipped("no such tool")

    steps = [("good", lambda: "done"), ("bad", fail), ("absent", skip)]
    outcomes = [check.perform(number, 3, *step) for number, step in enumerate(steps, start=1)]
    arguments = check.parse(["--interpreter", "--output", str(tmp_path)])
    assert check.write_report(arguments, outcomes) == 1
    text = (tmp_path / "report.md").read_text()
    assert "No GPU" in text
    assert "| bad | FAILED |" in text
    assert "| absent | skipped |" in text
    assert json.loads((tmp_path / "check.json").read_text())["steps"][1]["detail"] == "first line\nlast line"


def test_the_check_skips_a_missing_backend_but_not_a_library_that_does_not_load(tmp_path, monkeypatch):
    check = load("check_gpu")
    monkeypatch.setenv("SPARSE_DETR_NATIVE_DIR", str(tmp_path))
    with pytest.raises(check.Skipped, match="build it with"):
        check.small_case("cuda")
    (tmp_path / "libsparse_detr_cuda.so").write_text("no library")
    check.skip_without("cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_accuracy_check_accepts_a_right_backend_and_finds_a_wrong_one(dtype, monkeypatch):
    accuracy = load("benchmark.accuracy")
    found = accuracy.deviations("reference", "cpu", dtype)
    assert max(found.values()) < accuracy.TOLERANCES[dtype]
    assert "fused, boxes, gradient of reference_points" in found
    right = accuracy.attend

    def without_padding(form, inputs, leaves, mask, backend):
        return right(form, inputs, leaves, torch.zeros_like(mask), backend)

    monkeypatch.setattr(accuracy, "attend", without_padding)
    assert max(accuracy.deviations("reference", "cpu", dtype).values()) > accuracy.TOLERANCES[dtype]


@pytest.mark.slow
def test_the_stand_in_for_the_public_kernel_compiles(tmp_path):
    public_kernel = load("benchmark.peers.public_kernel")
    try:
        public_kernel.nvcc()
    except public_kernel.CannotBuild as reason:
        pytest.skip(str(reason))
    library = ctypes.CDLL(str(public_kernel.compile_library(tmp_path)))
    assert library.public_forward
    assert library.public_backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_stand_in_for_the_public_kernel_equals_the_formula():
    timing, public_kernel = load("benchmark.timing"), load("benchmark.peers.public_kernel")
    task = timing.Task(load("benchmark.cases").CASES[0], "plain", True, "cuda", "float32", 1)
    assert max(timing.errors(public_kernel.variant(), task)) < 1e-5
