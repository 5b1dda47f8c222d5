"""Every number of a report is one that is solved by hand, and AP and recall are pycocotools'."""

import numpy as np
import pytest

from sparse_detr.errors import UserError
from sparse_detr.report.numbers import WorkingPoint, best_point, f1_curve, report_numbers
from tests.evaluation.hard_cases import make_case
from tests.evaluation.test_coco import HARD, pycocotools_scores
from tests.report.made_up import make_results, make_truth

# Precision of the cats: 1 up to a recall of 1/3 (34 of COCO's 101 places), then 3/5; without the duplicate 3/4.
CATS_AP, CATS_AP_WITHOUT_DUPLICATE = 100 * (34 + 67 * 3 / 5) / 101, 100 * (34 + 67 * 3 / 4) / 101


@pytest.fixture(scope="module")
def numbers():
    return report_numbers(make_truth(), make_results())


def test_the_threshold_of_a_class_is_that_of_the_highest_f1(numbers):
    cat, dog, hen = numbers["classes"]
    assert (cat["threshold"], cat["precision_there"], cat["recall_there"]) == (0.6, 0.6, 1.0)
    assert cat["f1_there"] == pytest.approx(0.75)
    assert dog["threshold"] is hen["threshold"] is None
    assert numbers["all"] == pytest.approx({"threshold": 0.6, "precision": 0.6, "recall": 0.75, "f1": 2 / 3})


def test_scores_of_classes_are_those_by_hand(numbers):
    cat, dog, hen = numbers["classes"]
    for name in ("AP", "AP50", "AP75"):
        assert cat[name] == pytest.approx(CATS_AP)
        assert dog[name] == 0
        assert hen[name] is None
        assert numbers["scores"][name] == pytest.approx(CATS_AP / 2)
    assert (cat["recall"], dog["recall"], hen["recall"]) == (1, 0, None)
    assert numbers["scores"]["recall"] == 0.5
    assert [row["true_boxes"] for row in numbers["classes"]] == [3, 1, 0]
    assert [row["detections"] for row in numbers["classes"]] == [6, 1, 1]
    assert (numbers["images"], numbers["true_boxes"], numbers["crowds"], numbers["detections"]) == (3, 4, 1, 8)


def test_a_detection_on_another_class_is_a_confusion_and_one_on_a_crowd_is_none(numbers):
    assert numbers["confusion"]["names"] == ["cat", "dog </script>", "hen", "background"]
    assert numbers["confusion"]["matrix"] == [[3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_without_a_right_detection_all_true_boxes_are_missed():
    found = report_numbers(make_truth(), [row | {"bbox": [50, 50, 5, 5]} for row in make_results()])
    assert found["all"] is None
    assert [row["threshold"] for row in found["classes"]] == [None] * 3
    assert [row[-1] for row in found["confusion"]["matrix"]] == [3, 1, 0, 0]


def test_where_nothing_is_right_only_detections_from_a_half_on_are_shown():
    rows = [row | {"bbox": [50, 50, 5, 5], "score": score} for row, score in zip(make_results(), (0.5, 0.49, 0.001))]
    found = report_numbers(make_truth(), rows)
    assert found["confusion"]["matrix"][-1] == [1, 0, 0, 0]
    assert [image["false"] for image in found["worst"]] == [1, 0]


def test_detections_on_crowds_alone_leave_an_empty_confusion_matrix():
    [on_crowd] = [row for row in make_results() if row["image_id"] == 3 and row["category_id"] == 5]
    found = report_numbers(make_truth(), [on_crowd])
    assert found["confusion"]["matrix"] == [[0, 0, 0, 3], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["worst"][0]["missed"] == 2


def test_calibration_compares_scores_with_the_share_that_is_right(numbers):
    found = numbers["calibration"]
    bins = {round(one["from"], 1): one for one in found["bins"]}
    assert [bins[at]["detections"] for at in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)] == [1, 1, 0, 2, 1, 1, 1]
    assert (bins[0.6]["mean_score"], bins[0.6]["right"]) == (pytest.approx(0.625), 1)
    assert bins[0.5]["mean_score"] is bins[0.5]["right"] is None
    assert found["expected_error"] == pytest.approx((0.1 + 0.8 + 0.7 + 2 * 0.375 + 0.4 + 0.2) / 7)


def test_the_cost_of_duplicates_is_the_ap_that_suppression_gives(numbers):
    found = numbers["duplicates"]
    assert found["suppressed"] == 1
    assert found["AP50"] == pytest.approx(CATS_AP_WITHOUT_DUPLICATE / 2)
    assert found["AP50_cost"] == pytest.approx((CATS_AP_WITHOUT_DUPLICATE - CATS_AP) / 2)
    assert found["AP_cost"] == pytest.approx(found["AP50_cost"])


def test_without_duplicates_they_cost_nothing():
    found = report_numbers(make_truth(), [row for row in make_results() if row["score"] != 0.8])["duplicates"]
    assert (found["suppressed"], found["AP_cost"], found["AP50_cost"]) == (0, 0, 0)


def test_the_worst_images_hold_what_is_missed_false_and_right_at_the_thresholds(numbers):
    [image] = numbers["worst"]
    assert (image["image_id"], image["file_name"]) == (1, "1.png")
    assert (image["width"], image["height"]) == (64, 64)
    assert (image["missed"], image["false"], image["right"]) == (1, 2, 1)
    boxes = [(box["kind"], box["class"], box["bbox"], box.get("score")) for box in image["boxes"]]
    assert boxes == [
        ("missed", "dog </script>", [20, 0, 10, 10], None),
        ("false", "cat", [0, 0, 10, 9.5], 0.8),
        ("false", "cat", [20, 0, 10, 10], 0.7),
        ("right", "cat", [0, 0, 10, 10], 0.9),
    ]


def test_only_so_many_of_the_worst_images_are_named():
    truth, detections = make_case(0)
    errors = [image["missed"] + image["false"] for image in report_numbers(truth, detections, worst=4)["worst"]]
    assert len(errors) == 4
    assert errors == sorted(errors, reverse=True)


def test_detections_of_one_score_count_together():
    scores, right = np.array([0.5, 0.5, 0.9]), np.array([True, False, False])
    assert best_point(scores, right, 1) == WorkingPoint(threshold=0.5, precision=1 / 3, recall=1.0, f1=0.5)


def test_of_equal_f1_the_highest_threshold_is_taken():
    scores, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True])
    assert best_point(scores, right, 2) == WorkingPoint(threshold=0.9, precision=1.0, recall=0.5, f1=2 / 3)


def test_the_f1_curve_counts_detections_from_the_threshold_on():
    curve = f1_curve(np.array([0.5, 0.25, 0.75]), np.array([True, False, True]), 2)
    assert curve[0] == curve[25] == pytest.approx(4 / 5)
    assert curve[26] == curve[50] == 1
    assert curve[51] == curve[75] == pytest.approx(2 / 3)
    assert curve[76] == curve[100] == 0


def test_the_f1_curve_counts_a_score_that_is_the_threshold_as_written():
    written = [float(f"0.{step:02}") for step in range(100)]
    assert [f1_curve(np.array([score]), np.array([True]), 1)[step] for step, score in enumerate(written)] == [1] * 100


def test_curves_of_a_class_without_boxes_are_missing(numbers):
    curves = numbers["curves"]
    assert curves["precision"][2] is curves["f1"][2] is None
    assert [curves["precision"][0][place] for place in (0, 33, 34, 100)] == [1, 1, 0.6, 0.6]
    assert curves["f1"][0][60] == 0.75
    assert len(curves["f1_all"]) == len(curves["steps"]) == 101


@pytest.mark.parametrize("name", ["plain", "crowds", "tied scores", "tied overlaps on thresholds", "one class"])
def test_ap_and_recall_of_all_and_of_classes_equal_those_of_pycocotools(name):
    truth, detections = make_case(7, **HARD[name])
    assert_scores_of_pycocotools(truth, detections, 100)


def test_scores_with_another_limit_equal_those_of_pycocotools():
    truth, detections = make_case(3, **HARD["more detections than count"])
    assert_scores_of_pycocotools(truth, detections, 300)


def assert_scores_of_pycocotools(truth, detections, limit):
    expected = pycocotools_scores(truth, detections, [1, 10, limit])
    found = report_numbers(truth, detections, limit=limit)
    known = [None if value < 0 else 100 * value for value in expected.stats]
    assert [found["scores"][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")] == known[:6]
    assert [found["scores"][name] for name in ("AR1", "AR10", "AR")] == known[6:9]
    assert sum(row["true_boxes"] > 0 for row in found["classes"]) >= 1
    for index, row in enumerate(found["classes"]):
        precision, recall = expected.eval["precision"][:, :, index, 0, 2], expected.eval["recall"][0, index, 0, 2]
        if not row["true_boxes"]:
            assert (precision == -1).all()
            assert row["AP"] is row["recall"] is None
            continue
        assert row["AP"] == 100 * precision.mean()
        assert (row["AP50"], row["AP75"]) == (100 * precision[0].mean(), 100 * precision[5].mean())
        assert row["recall"] == recall


def test_true_boxes_that_hotcoco_cannot_score_are_refused():
    truth = make_truth()
    truth["annotations"][0]["id"] = 0
    with pytest.raises(UserError, match="come from hotcoco, which cannot be used: an annotation has the id 0"):
        report_numbers(truth, make_results())
