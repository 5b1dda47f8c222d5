"""The record of a benchmark as tables, CSV, name of files and picture."""

import csv
import io
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sparse_detr.benchmark import picture
from sparse_detr.benchmark.report import COLUMNS, as_csv, as_markdown, file_stem, rows, short, sizes_text
from tests.benchmark.records import DISTURBANCE, OURS, RIVAL, make


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_csv_has_a_row_for_each_model_batch_and_part():
    read = list(csv.DictReader(io.StringIO(as_csv(make()))))
    assert tuple(read[0]) == COLUMNS
    assert len(read) == 2 * (1 + 4) + 2 * (1 + 5)
    whole = read[0]
    assert (whole["model"], whole["batch"], whole["part"]) == ("sparse_detr_r50_rho10", "1", "whole")
    assert (whole["p50_ms"], whole["p90_ms"]) == ("110.0", "142.0")  # of 100, 110 and 150
    assert (whole["images_per_second"], whole["peak_mib"], whole["AP"]) == ("9.090909", "372.4", "45.34")
    assert (whole["gigaflops"], whole["parameters"], whole["quiet_machine"]) == ("70.5", "41000000", "True")
    backbone = next(row for row in read if row["part"] == "backbone")
    assert (backbone["p50_ms"], backbone["p90_ms"], backbone["gigaflops"]) == ("70.0", "102.0", "60.0")
    assert backbone["images_per_second"] == ""
    rival = [row for row in read if row["model"] == "transformers"]
    assert {row["gigaflops"] for row in rival} == {""}
    assert {row["peak_mib"] for row in rival} == {""}
    assert {row["quiet_machine"] for row in csv.DictReader(io.StringIO(as_csv(make(disturbance="x"))))} == {"False"}


def test_throughput_counts_the_images_of_the_batch():
    two = next(row for row in rows(make()) if row["batch"] == 2)
    assert two["images_per_second"] == 2 / 0.2


def test_the_record_survives_json():
    assert json.loads(json.dumps(make())) == make()


def test_the_name_of_the_files_says_the_protocol_and_has_no_dot():
    record = make()
    assert file_stem(record) == "benchmark_sparse_detr_r50_rho10_cpu-1thread_b1-2_480x600-640_3rounds"
    record["machine"]["gpu"] = {"name": "NVIDIA H200 1.5"}
    assert file_stem(record).startswith("benchmark_sparse_detr_r50_rho10_NVIDIA-H200-1-5_b1-2_")
    record["protocol"] |= {"threads": 2, "sizes": [[480, 640]]}
    assert sizes_text(record) == "480x640"
    record["machine"]["gpu"] = None
    assert "_cpu-2threads_" in file_stem(record)


def test_the_tables_hold_the_medians_and_the_ratio_to_the_first():
    lines = as_markdown(make()).splitlines()
    assert cells(lines[0])[:6] == ["model", "batch", "p50 ms", "p90 ms", "images/s", "against the first"]
    ours, _, rival, _ = (cells(line) for line in lines[2:6])
    assert ours == ["sparse_detr_r50_rho10", "1", "110", "142", "9.09", "1.00x", "372", "41.0", "70.5", "45.3"]
    assert rival == ["transformers", "1", "220", "220", "4.55", "0.50x", "-", "40.0", "-", "-"]
    parts = next(i for i, line in enumerate(lines) if line.startswith("| model |  |"))
    assert cells(lines[parts])[2:] == ["backbone", "encoder", "decoder", "heads", "rest"]
    assert cells(lines[parts + 2]) == ["sparse_detr_r50_rho10", "ms", "70", "20", "15", "-", "5"]
    assert cells(lines[parts + 3]) == ["sparse_detr_r50_rho10", "GFLOPs", "60.00", "8.00", "2.00", "-", "0.50"]


def test_the_protocol_is_told_in_words():
    text = as_markdown(make(), "bars.png")
    assert "A CPU, AVX512, 1 thread of 2 CPUs; torch 2.14.1" in text
    assert "allocator: glibc, default settings" in text
    assert "9 images of 480x600-640 pixels after the config's preprocessing, 4 different ones" in text
    assert "3.1% of the batches is padding. 3 rounds after one for warm-up" in text
    assert "- transformers: our weights; largest difference of logits and boxes 2.0e-12" in text
    assert "![Milliseconds by part](bars.png)" in text


def test_the_first_line_says_that_the_machine_was_busy():
    assert as_markdown(make()).startswith("| model |")
    first = as_markdown(make(disturbance=DISTURBANCE)).splitlines()[0]
    assert first == f"**Not a quiet machine: {DISTURBANCE}.**"


def test_without_evaluation_there_is_no_column_for_ap():
    record = make(contestants=[OURS | {"scores": None}, RIVAL])
    assert "AP" not in cells(as_markdown(record).splitlines()[0])


@pytest.mark.parametrize(("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_three_digits(value, text):
    assert short(value) == text


@pytest.mark.parametrize("disturbance", [None, DISTURBANCE])
def test_no_text_of_the_picture_covers_another(tmp_path, monkeypatch, disturbance):
    """Names of any length, parts of any width."""
    record = make(disturbance=disturbance)
    long = OURS | {"name": "sparse_detr_r50_rho10, bf16 form, keep 10 % of a $name that has no end$", "gigaflops": None}
    record["contestants"].append(long)
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    picture.draw(record, tmp_path / "bars.png")
    figure = drawn[0]
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    texts = [*axis.texts, *axis.get_yticklabels(), *figure.legends[0].get_texts(), axis.xaxis.label]
    texts += figure.texts + ([figure._suptitle] if figure._suptitle not in figure.texts else [])
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    overlapping = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert len(boxes) > 15
    assert overlapping == []
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


def test_the_picture_is_written(tmp_path):
    picture.draw(make(), tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as image:
        assert image.width > 800
