"""Of detections that overlap, the best of an image and class stays."""

from sparse_detr.evaluation.duplicates import suppress_duplicates

BOX, NEAR, FAR = [10, 10, 20, 20], [11, 10, 20, 20], [60, 60, 20, 20]
ROWS = [(1, 1, NEAR, 0.5), (1, 1, BOX, 0.9), (1, 1, FAR, 0.3), (1, 2, NEAR, 0.4), (2, 1, NEAR, 0.2)]


def results(rows):
    return [dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in rows]


def test_suppression_leaves_the_best_of_overlapping_detections_of_an_image_and_class():
    assert suppress_duplicates(results(ROWS)) == results(ROWS[1:])  # in their order


def test_two_boxes_with_an_iou_of_the_limit_both_stay():
    pair = results([(1, 1, [0, 0, 10, 10], 0.9), (1, 1, [0, 0, 10, 7], 0.8)])  # IoU 0.7
    assert suppress_duplicates(pair, 0.7) == pair
    assert suppress_duplicates(pair, 0.69) == pair[:1]


def test_no_detections_stay_none():
    assert suppress_duplicates([]) == []
