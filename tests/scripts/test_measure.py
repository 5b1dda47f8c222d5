import itertools
import json
import random

import pytest

RESULTS = {
    "dense": [{"AP": 50.0, "AP50_suppressed": 99.0, "AP50": 80.0}, {"AP": 52.0, "AP50_suppressed": 99.0, "AP50": 84.0}],
    "rho10": [{"AP": 49.0, "AP50_suppressed": 99.0, "AP50": 79.0}, {"AP": 49.0, "AP50_suppressed": 99.0, "AP50": 79.0}],
}
COST = {"mean_keep_ratio": 1.0, "encoder_gigaflops": 0.456, "total_gigaflops": 1.2}
TIMES = {"seconds_per_image": 0.0301, "seconds_per_training_step": 0.5}
COSTS = {"dense": {**COST, **TIMES}, "rho10": {**COST, **TIMES, "mean_keep_ratio": 0.1, "encoder_gigaflops": 0.1}}


@pytest.fixture
def script(load_script):
    return load_script("measure")


def test_the_table_of_costs_has_a_row_for_every_variant_with_mean_and_deviation(script):
    rows = script.table_with_costs(RESULTS, COSTS).splitlines()
    assert rows[2].startswith("| Deformable DETR, two-stage, dense | 100% | 0.46 | 1.20 | 30 | 500 |")
    assert rows[2].endswith("| 51.0 ± 1.4 | 82.0 ± 2.8 | 99.0 ± 0.0 |")
    assert rows[3].startswith("| Sparse DETR, rho 10 % | 10% | 0.10 |")


def test_the_plot_is_written_to_a_file(script, tmp_path):
    script.plot_costs(tmp_path / "plot.png", RESULTS, COSTS)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_every_variant_has_a_config(script):
    for _, config, overrides in script.VARIANTS.values():
        assert (script.ROOT / config).is_file()
        assert all("=" in override for override in overrides)


def overlap(one, other):
    return min(one[2], other[2]) > max(one[0], other[0]) and min(one[3], other[3]) > max(one[1], other[1])


@pytest.mark.parametrize("seed", range(20))
def test_labels_of_points_anywhere_overlap_neither_each_other_nor_marks_nor_the_edge(script, seed):
    numbers = random.Random(seed)
    middle = numbers.uniform(100, 700), numbers.uniform(100, 400)  # a cluster, as of models that are alike
    points = [(middle[0] + numbers.uniform(-90, 90), middle[1] + numbers.uniform(-60, 60)) for _ in range(8)]
    sizes = [(numbers.uniform(40, 230), 14.0) for _ in points]
    marks = [(x - 6, y - 30, x + 6, y + 30) for x, y in points]
    corners = script.place_labels(points, sizes, marks, (0, 0, 800, 500))
    labels = [(x, y, x + width, y + height) for (x, y), (width, height) in zip(corners, sizes, strict=True)]
    assert not any(overlap(one, other) for one, other in itertools.combinations(labels, 2))
    assert not any(overlap(label, mark) for label in labels for mark in marks)
    assert all(x >= 0 and y >= 0 and right <= 800 and top <= 500 for x, y, right, top in labels)


def test_a_label_without_a_free_place_is_still_placed(script):
    everywhere = [(-1000, -1000, 1000, 1000)]
    assert len(script.place_labels([(50, 50)], [(30, 10)], everywhere, (0, 0, 100, 100))) == 1


def test_a_plot_is_drawn_again_from_its_numbers(script, tmp_path):
    (tmp_path / "some.json").write_text(json.dumps({"results": RESULTS, "costs": COSTS}))
    script.redraw(tmp_path / "some.json")
    assert (tmp_path / "some.png").stat().st_size > 1000


def test_a_later_call_takes_over_the_scores_of_runs_with_the_same_settings(script, tmp_path):
    record = script.Record(tmp_path / "some.json", ["--train-json", "a.json", "optimizer.lr=1e-3"])
    record.add("dense", {"seed": 1, "iterations": 499, "AP": 51.0})
    record.add("dense", {"seed": 0, "iterations": 499, "AP": 50.0})
    later = script.Record(tmp_path / "some.json", ["--train-json", "elsewhere/a.json", "optimizer.lr=1e-3"])
    assert later.run("dense", 0, 500)["AP"] == 50.0
    assert [run["seed"] for run in later.results["dense"]] == [0, 1]
    assert later.run("dense", 0, 900) == later.run("dense", 2, 500) == later.run("rho10", 0, 500) == {}
    later.write({})  # a call with fewer seeds loses none
    assert [run["seed"] for run in json.loads((tmp_path / "some.json").read_text())["results"]["dense"]] == [0, 1]
    other = script.Record(tmp_path / "some.json", ["optimizer.lr=1e-4"])
    assert other.run("dense", 0, 500) == {}


def test_costs_are_of_the_images_at_each_models_own_size(script, monkeypatch):
    """A model of larger images has more FLOPs, in whichever order they are named."""
    monkeypatch.setattr(script, "ROUNDS", 1)
    small = ["dataloader.test.mapper.augmentations.short_size=96", "dataloader.test.mapper.augmentations.max_size=96"]
    large = [text.replace("96", "192") for text in small]
    train = ["dataloader.train.total_batch_size=1", "train.device=cpu"]
    config = "configs/quick/deformable_detr_topk_mnv2.py"
    monkeypatch.setattr(
        script, "VARIANTS", {"small": ("", config, small + train), "large": ("", config, large + train)}
    )
    for variants in (["small", "large"], ["large", "small"]):
        costs = script.measure_costs(variants, [])
        assert costs["large"]["total_gigaflops"] > 2 * costs["small"]["total_gigaflops"]
