"""Every true object gets one verdict: cases made by hand, a property, and agreement with hotcoco."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_detr.analysis.blame import (
    BADLY_LOCALISED,
    BEATEN,
    FOUND,
    LOW_SCORE,
    MISCLASSIFIED,
    MISSES,
    NOT_PROPOSED,
    NOT_SELECTED,
    TAKEN,
    TIDE_MISSES,
    VERDICTS,
    LabeledBoxes,
    clip_to_image,
    counted,
    judge,
    match,
    starts_on,
)
from sparse_detr.evaluation.tide import tide_errors

CAT, DOG = 0, 1
HERE, ASIDE, FAR = [0.0, 0, 10, 10], [2.0, 0, 12, 10], [50.0, 50, 60, 60]  # HERE and ASIDE have the IoU 2/3


def boxes(*entries):
    """Make boxes of (box, class) or (box, class, score)."""
    scores = torch.tensor([entry[2] for entry in entries]) if entries and len(entries[0]) == 3 else None
    return LabeledBoxes(
        torch.tensor([entry[0] for entry in entries]).view(-1, 4),
        torch.tensor([entry[1] for entry in entries], dtype=torch.long),
        scores,
    )


def verdict_on_cat(*, detections=(), final=(), others=(), selected=True, proposed=True):
    """Judge a cat at HERE, besides `others`."""
    truth = boxes((HERE, CAT), *others)
    flags = [
        torch.tensor([value, *[True] * len(others)]) if value is not None else None for value in (selected, proposed)
    ]
    found = judge(truth, boxes(*detections), boxes(*final), selected=flags[0], proposed=flags[1])
    return found[0].verdict, found[0].detail


def test_an_object_with_a_fitting_detection_of_its_class_is_found():
    assert verdict_on_cat(detections=[(ASIDE, CAT, 0.1)], final=[(ASIDE, CAT)]) == (FOUND, "")


def test_a_found_object_is_found_whatever_was_selected():
    assert verdict_on_cat(detections=[(HERE, CAT, 0.1)], final=[(HERE, CAT)], selected=False)[0] == FOUND


def test_a_miss_without_a_selected_token_is_the_selectors_even_if_a_box_fits():
    assert verdict_on_cat(final=[(HERE, CAT)], selected=False) == (NOT_SELECTED, "")


def test_a_miss_where_no_query_starts_and_no_box_fits_is_not_proposed():
    assert verdict_on_cat(final=[(FAR, CAT)], proposed=False) == (NOT_PROPOSED, "")


def test_a_box_that_fits_in_the_end_counts_as_a_proposal():
    assert verdict_on_cat(final=[(HERE, DOG)], proposed=False)[0] == MISCLASSIFIED


def test_where_starts_cannot_be_told_nothing_is_blamed_on_them():
    assert verdict_on_cat(final=[(FAR, CAT)], proposed=None)[0] == BADLY_LOCALISED


def test_a_box_of_the_right_class_that_does_not_count_is_beaten():
    assert verdict_on_cat(final=[(HERE, CAT)]) == (BEATEN, LOW_SCORE)


def test_a_box_that_another_object_took_is_beaten():
    """One detection lies between two cats and takes the nearer one."""
    result = verdict_on_cat(detections=[(ASIDE, CAT, 0.9)], final=[(ASIDE, CAT)], others=[(ASIDE, CAT)])
    assert result == (BEATEN, TAKEN)


def test_a_taken_detection_beats_even_if_the_query_prefers_another_class():
    result = verdict_on_cat(detections=[(ASIDE, CAT, 0.2)], final=[(ASIDE, DOG)], others=[(ASIDE, CAT)])
    assert result == (BEATEN, TAKEN)


def test_a_box_that_fits_with_another_class_is_misclassified():
    assert verdict_on_cat(detections=[(HERE, DOG, 0.9)], final=[(HERE, DOG)])[0] == MISCLASSIFIED


def test_a_query_that_started_on_it_but_ends_elsewhere_is_badly_localised():
    assert verdict_on_cat(detections=[(FAR, CAT, 0.9)], final=[(FAR, CAT)])[0] == BADLY_LOCALISED


def test_without_any_prediction_the_proposals_are_told_apart():
    assert verdict_on_cat() == (BADLY_LOCALISED, "")
    assert verdict_on_cat(proposed=False) == (NOT_PROPOSED, "")


def test_an_image_without_objects_has_no_verdicts():
    none = torch.zeros(0, dtype=torch.bool)
    assert judge(boxes(), boxes((HERE, CAT, 0.5)), boxes((HERE, CAT)), selected=none, proposed=none) == []


def test_the_best_box_and_its_class_are_told():
    truth, flags = boxes((HERE, CAT)), torch.tensor([True])
    [found] = judge(truth, boxes(), boxes((FAR, CAT), (ASIDE, DOG)), selected=flags, proposed=flags)
    assert (found.best_iou, found.best_label) == (pytest.approx(2 / 3), DOG)


def test_the_better_detection_chooses_first_and_takes_the_object_that_it_overlaps_most():
    overlap = torch.tensor([[0.6, 0.8], [0.9, 0.7], [0.9, 0.9]])
    labels = torch.tensor([CAT, CAT, CAT])
    assert match(overlap, labels, torch.tensor([CAT, CAT]), 0.5).tolist() == [1, 0]


def test_of_two_objects_with_one_iou_the_last_is_taken_as_in_cocos_code():
    assert match(torch.tensor([[0.7, 0.7]]), torch.tensor([CAT]), torch.tensor([CAT, CAT]), 0.5).tolist() == [-1, 0]


def test_an_iou_of_just_the_threshold_matches_and_another_class_never():
    overlap = torch.tensor([[0.5, 1.0]])
    assert match(overlap, torch.tensor([CAT]), torch.tensor([CAT, DOG]), 0.5).tolist() == [0, -1]


def test_detections_count_from_the_threshold_up_to_the_limit_of_a_class():
    given = boxes((HERE, CAT, 0.3), (ASIDE, CAT, 0.9), (FAR, CAT, 0.5), (FAR, DOG, 0.3), (FAR, DOG, 0.2))
    found = counted(given, score_threshold=0.3, limit=2)
    assert list(zip(found.labels.tolist(), found.scores.tolist(), strict=True)) == [
        (CAT, pytest.approx(0.9)),
        (CAT, pytest.approx(0.5)),
        (DOG, pytest.approx(0.3)),
    ]
    assert found.boxes[0].tolist() == ASIDE


def test_150_perfect_detections_of_a_class_find_150_objects_where_as_many_count():
    places = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(150)]
    truth = boxes(*((place, CAT) for place in places))
    given = boxes(*((place, CAT, 1 - i / 300) for i, place in enumerate(places)))
    flags = torch.ones(150, dtype=torch.bool)
    for limit, found in ((150, 150), (100, 100)):
        detections = counted(given, limit=limit)
        verdicts = judge(truth, detections, truth, selected=flags, proposed=flags)
        assert [verdict.verdict for verdict in verdicts] == [FOUND] * found + [BEATEN] * (150 - found)
        assert len(tide_errors(*coco_form(truth, given), limit=limit).found) == found


def test_a_query_starts_on_an_object_that_contains_its_reference():
    points = torch.tensor([[0.2, 0.2], [0.9, 0.9]])
    truth = torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    assert starts_on(points, truth).tolist() == [True, False]
    assert starts_on(torch.cat([points, points], 1), truth).tolist() == [True, False]


def test_queries_that_all_start_at_one_point_tell_nothing():
    assert starts_on(torch.full((5, 2), 0.5), torch.tensor([[0.5, 0.5, 0.2, 0.2]])) is None


def test_boxes_are_clipped_to_the_image():
    clipped = clip_to_image(torch.tensor([[-5.0, 2, 30, 40]]), (20, 10))
    assert clipped.tolist() == [[0, 2, 10, 20]]


def tide_of(detections, *truth):
    flags = torch.ones(len(truth), dtype=torch.bool)
    return [found.tide for found in judge(boxes(*truth), boxes(*detections), boxes(), selected=flags, proposed=flags)]


def test_tide_classes_a_miss_by_the_error_that_points_at_it():
    shifted = [6.0, 0, 16, 10]  # the IoU with HERE is 1/4
    assert tide_of([(HERE, CAT, 0.9)], (HERE, CAT)) == [""]
    assert tide_of([(shifted, CAT, 0.9)], (HERE, CAT)) == ["Loc"]
    assert tide_of([(HERE, DOG, 0.9)], (HERE, CAT)) == ["Cls"]
    assert tide_of([(FAR, CAT, 0.9)], (HERE, CAT)) == ["Miss"]
    assert tide_of([], (HERE, CAT)) == ["Miss"]


def test_the_better_of_two_errors_names_the_class_of_a_miss():
    shifted = [6.0, 0, 16, 10]
    assert tide_of([(HERE, DOG, 0.9), (shifted, CAT, 0.8)], (HERE, CAT)) == ["Cls"]
    assert tide_of([(shifted, CAT, 0.9), (HERE, DOG, 0.8)], (HERE, CAT)) == ["Loc"]


places = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
entries = st.lists(st.tuples(places, st.integers(0, 2), st.integers(1, 99)), max_size=8)


def placed(found, *, with_scores):
    """Make boxes of (x, y, width, height), class and score."""
    corners = [
        ([float(x), float(y), float(x + w), float(y + h)], label, score / 100) for (x, y, w, h), label, score in found
    ]
    return boxes(*(corner if with_scores else corner[:2] for corner in corners))


def coco_form(truth, detections):
    """Return a COCO file and results of one image; annotation i + 1 is object i."""

    def xywh(corners):
        x0, y0, x1, y1 = corners
        return [x0, y0, x1 - x0, y1 - y0]

    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": label + 1, "bbox": xywh(box), "area": 1.0, "iscrowd": 0}
        for i, (box, label) in enumerate(zip(truth.boxes.tolist(), truth.labels.tolist(), strict=True))
    ]
    results = [
        {"image_id": 1, "category_id": label + 1, "bbox": xywh(box), "score": score}
        for box, label, score in zip(
            detections.boxes.tolist(), detections.labels.tolist(), detections.scores.tolist(), strict=True
        )
    ]
    categories = [{"id": number, "name": str(number)} for number in (1, 2, 3)]
    return {"images": [{"id": 1}], "categories": categories, "annotations": annotations}, results


@settings(max_examples=100, deadline=None)
@given(truth=entries, detections=entries, final=entries, flags=st.lists(st.booleans(), min_size=16, max_size=16))
def test_every_object_gets_exactly_one_verdict_and_hotcoco_finds_the_same_objects(truth, detections, final, flags):
    truth, final = placed(truth, with_scores=False), placed(final, with_scores=False)
    detections = counted(placed(detections, with_scores=True)) if detections else boxes()
    number = len(truth.boxes)
    selected, proposed = (
        torch.tensor(flags[:number], dtype=torch.bool),
        torch.tensor(flags[8 : 8 + number], dtype=torch.bool),
    )
    found = judge(truth, detections, final, selected=selected, proposed=proposed)
    assert len(found) == number
    for verdict, was_selected in zip(found, selected.tolist(), strict=True):
        assert verdict.verdict in VERDICTS
        assert (verdict.verdict == FOUND) == (verdict.tide == "")
        assert verdict.tide in ("", *TIDE_MISSES)
        assert (verdict.verdict == BEATEN) == bool(verdict.detail)
        assert (verdict.verdict == NOT_SELECTED) <= (not was_selected)
        assert (verdict.verdict in MISSES[1:]) <= was_selected
    if number and len(detections.boxes):
        tide = tide_errors(*coco_form(truth, detections))
        assert {i + 1 for i, verdict in enumerate(found) if verdict.verdict == FOUND} == tide.found
        assert sum(verdict.tide == "Miss" for verdict in found) == tide.counts["Miss"]
