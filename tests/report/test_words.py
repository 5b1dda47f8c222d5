"""The sentences and the table say what the numbers say."""

import copy

import pytest

from sparse_detr.analysis.tables import threshold_text
from sparse_detr.report.words import class_rows, sentences, table

COST = (
    "duplicates cost 0.5 AP50 and 0.2 AP: without detections that overlap a better one of their class (IoU above 0.7), "
    "AP50 is 90.0 and AP 55.0; train longer, or suppress them "
)
ELSEWHERE = "after the model"
OF_RUN = "with model.postprocess.suppress_duplicates=0.7 (yaml: TEST.SUPPRESS_DUPLICATES 0.7)"


def with_cost(numbers, cost):
    duplicates = {"max_iou": 0.7, "suppressed": 9, "AP": 55.0, "AP50": 90.0, "AP_cost": 0.2, "AP50_cost": cost}
    return {**numbers, "duplicates": duplicates}


def test_the_sentences_of_a_report(numbers):
    assert sentences(numbers) == [
        "AP 36.7, AP50 36.7, AP75 36.7: 8 detections and 4 true boxes of 3 classes in 3 images",
        "with one threshold for all classes, 0.600 gives the highest F1, 0.67: 60% of the detections are right, 75% of "
        "the true boxes are found",
        "the class with the lowest AP is dog </script>: 0.0, 1 true box",
        COST.replace("0.5 AP50 and 0.2", "5.0 AP50 and 5.0").replace("90.0", "41.7").replace("55.0", "41.7")
        + ELSEWHERE,
        "hen has no true boxes here, so it has no scores",
    ]


def test_what_there_is_one_of_is_in_the_singular(numbers):
    one = {**numbers, "detections": 1, "true_boxes": 1, "images": 1, "classes": numbers["classes"][:1]}
    assert sentences(one)[0].endswith(": 1 detection and 1 true box of 1 class in 1 image")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 true box cannot be used and is left out, so the AP can differ"),
        (2, "2 true boxes cannot be used and are left out, so the AP can differ"),
    ],
)
def test_true_boxes_that_are_left_out_are_counted(numbers, count, words):
    assert sentences({**numbers, "left_out": count})[-1].startswith(words)
    assert sentences({**numbers, "left_out": 0}) == sentences(numbers)


def test_a_confusion_is_worth_a_sentence_from_three_on(numbers):
    names = ["cat", "dog", "background"]
    found = {"names": names, "matrix": [[7, 3, 0], [2, 9, 0], [0, 0, 0]]}
    assert "the most frequent confusion is cat seen as dog, 3 times of 10" in sentences({**numbers, "confusion": found})
    found = {"names": names, "matrix": [[7, 2, 9], [2, 9, 0], [0, 0, 0]]}
    assert not [text for text in sentences({**numbers, "confusion": found}) if "confusion" in text]


def test_duplicates_are_worth_a_sentence_from_half_a_point_of_ap50_on(numbers):
    assert COST + ELSEWHERE in sentences(with_cost(numbers, 0.5))
    assert COST + OF_RUN in sentences(with_cost({**numbers, "of_run": True}, 0.5))
    assert not [text for text in sentences(with_cost(numbers, 0.49)) if "duplicates" in text]


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (0.6, "scores of 0.5 or more are too high: 70% on average, but 60% of the detections are right"),
        (0.8, "scores of 0.5 or more are too low: 70% on average, but 80% of the detections are right"),
        (0.72, "scores of 0.5 or more can be read as probabilities: 70% on average, 72% are right"),
    ],
)
def test_calibration_is_told_of_scores_from_a_half_on(numbers, right, words):
    low = {"from": 0.1, "to": 0.2, "detections": 1000, "mean_score": 0.15, "right": 0.9}
    high = {"from": 0.7, "to": 0.8, "detections": 30, "mean_score": 0.7, "right": right}
    assert words in sentences({**numbers, "calibration": {"bins": [low, high]}})
    few = sentences({**numbers, "calibration": {"bins": [low, {**high, "detections": 29}]}})
    assert not [text for text in few if "scores of 0.5 or more" in text]
    without = sentences({**numbers, "calibration": {"bins": [low]}})
    assert any(text.startswith("no detection has a score of 0.5 or more") for text in without)


def test_a_report_without_a_right_detection_says_so(numbers):
    found = sentences({**numbers, "all": None})
    assert "no detection is right at an IoU of 0.5, so no score threshold is better than another" in found


def test_many_empty_classes_are_counted(numbers):
    empty = copy.deepcopy(numbers)
    empty["classes"] += [{**numbers["classes"][2], "name": f"class {number}"} for number in range(7)]
    assert sentences(empty)[-1] == (
        "hen, class 0, class 1, class 2, class 3 and 3 more have no true boxes here, so they have no scores"
    )


def test_the_table_has_a_row_a_class_and_one_of_all(numbers):
    assert class_rows(numbers) == [
        ["cat", "3", "6", "73.5", "73.5", "73.5", "1.000", "0.600", "0.600", "1.000", "0.750"],
        ["dog </script>", "1", "1", "0.0", "0.0", "0.0", "0.000", "-", "-", "-", "-"],
        ["hen", "0", "1", "-", "-", "-", "-", "-", "-", "-", "-"],
        ["all", "4", "8", "36.7", "36.7", "36.7", "0.500", "0.600", "0.600", "0.750", "0.667"],
    ]
    assert table(numbers).splitlines()[0].startswith("| class | true boxes | detections | AP |")


def test_a_threshold_is_rounded_down_so_that_its_detections_stay():
    assert (threshold_text(0.35567), threshold_text(None)) == ("0.355", "-")
    assert [threshold_text(value) for value in (0.057, 0.29, 1.0, 0.01)] == ["0.057", "0.290", "1.000", "0.010"]
    assert threshold_text(0.0) == "0.000"


def test_a_threshold_below_a_hundredth_has_three_digits():
    found = [threshold_text(value) for value in (0.0099999, 0.00456789, 0.0004, 1.239e-9)]
    assert found == ["0.00999", "0.00456", "0.000400", "1.23e-9"]
