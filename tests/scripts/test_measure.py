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


def test_the_plot_is_written(script, tmp_path):
    script.plot(tmp_path / "plot.png", RESULTS, COSTS)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_every_variant_has_a_config(script):
    for _, config, overrides in script.VARIANTS.values():
        assert (script.ROOT / config).is_file()
        assert all("=" in override for override in overrides)


def test_suppression_leaves_the_best_of_overlapping_detections_of_an_image_and_class(script):
    box, near, far = [10, 10, 20, 20], [11, 10, 20, 20], [60, 60, 20, 20]
    rows = [(1, 1, near, 0.5), (1, 1, box, 0.9), (1, 1, far, 0.3), (1, 2, near, 0.4), (2, 1, near, 0.2)]
    keys = ("image_id", "category_id", "bbox", "score")
    detections = [dict(zip(keys, row, strict=True)) for row in rows]
    left = script.suppress(detections)
    assert sorted(detection["score"] for detection in left) == [0.2, 0.3, 0.4, 0.9]
