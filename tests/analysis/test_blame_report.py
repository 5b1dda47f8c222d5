"""Sums, tables and advice about found and missed objects."""

import csv
import io
import math

import pytest

from sparse_detr.analysis.blame import BEATEN, FOUND, LOW_SCORE, NOT_SELECTED, TAKEN, VERDICTS
from sparse_detr.analysis.blame_report import (
    advice,
    as_csv,
    as_tables,
    size_of,
    summary,
    worst_images,
)
from tests.analysis.blamed_objects import OBJECTS, made

NAMES = ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    ("area", "size"), [(0, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")]
)
def test_sizes_are_cocos_and_have_no_overlap(area, size):
    assert size_of(area) == size


def test_the_counts_of_sizes_and_of_classes_sum_to_the_total():
    found = summary(OBJECTS, NAMES)
    assert found["objects"] == sum(found["verdicts"].values()) == 6
    for rows in (found["by_size"], found["by_class"]):
        for verdict in VERDICTS:
            assert sum(row[verdict] for row in rows.values()) == found["verdicts"][verdict]
    assert found["by_class"]["cow"] == dict.fromkeys(VERDICTS, 0)
    assert found["beaten_details"] == {LOW_SCORE: 1, TAKEN: 1}


def test_the_join_with_tide_holds_every_miss_once():
    join = summary(OBJECTS, NAMES)["tide_of_misses"]
    assert join[BEATEN] == {"Cls": 0, "Loc": 1, "Miss": 1}
    assert sum(sum(row.values()) for row in join.values()) == 4


def test_token_recall_is_averaged_over_objects_and_leaves_out_levels_without_tokens():
    recall = summary(OBJECTS, NAMES)["token_recall"]
    assert recall["all"] == {
        "objects": 6,
        "hit": pytest.approx(5 / 6),
        "share": pytest.approx((1 + 0.5 + 0 + 0.5 + 1 + 0.5) / 6),
        "share_of_levels": [pytest.approx(3.5 / 6), pytest.approx(0.5)],
    }
    assert recall["medium"] == {"objects": 0, "hit": None, "share": None, "share_of_levels": []}
    assert recall["small"]["share_of_levels"][1] is None


def test_advice_names_the_most_frequent_blame_first_with_a_remedy():
    sentences = advice(OBJECTS, score_threshold=0.3, has_selector=True)
    assert sentences[0].startswith("2 of 4 misses: beaten; 1 scored too low (below 0.3, or too many")
    assert "1 of 4 misses: not selected; these are the selector's: raise the budget" in "\n".join(sentences)
    assert "dog seen as cat (1)" in sentences[-1]


def test_advice_says_when_no_miss_is_the_selectors_or_none_is_missed():
    kept = [item for item in OBJECTS if item.verdict != NOT_SELECTED]
    assert advice(kept, score_threshold=0, has_selector=True)[-1].startswith("no miss is the selector's")
    assert not any("selector" in text for text in advice(kept, score_threshold=0, has_selector=False))
    assert advice(OBJECTS[:2], score_threshold=0, has_selector=True) == ["all 2 objects are found"]


def test_the_tables_show_the_sums_and_what_hotcoco_counts():
    tide = {"counts": {"Cls": 1, "Loc": 2, "Miss": 3}, "delta_ap": {"Cls": 0.015, "Loc": 0.0, "Miss": 0.2}}
    text = as_tables(summary(OBJECTS, NAMES), tide)
    assert "| small | 4 | 1 | 1 | 0 | 1 | 1 | 0 |" in text
    assert "| all | 6 | 2 | 1 | 0 | 2 | 1 | 0 |" in text
    assert "| all | 6 | 83% | 58% | 58% | 50% |" in text
    assert "| medium | 0 | - | - | - | - |" in text
    assert "| AP that they cost | 1.5 | 0.0 | 20.0 |" in text
    assert "TIDE |" not in as_tables(summary(OBJECTS, NAMES), None).replace("TIDE's class", "")


def test_the_csv_file_has_a_row_an_object_and_empty_cells_on_levels_without_tokens():
    rows = list(csv.DictReader(io.StringIO(as_csv(OBJECTS))))
    assert len(rows) == 6
    assert [row["verdict"] for row in rows] == [item.verdict for item in OBJECTS]
    assert (rows[1]["token_share_level1"], rows[1]["token_share_level2"]) == ("0.5000", "")
    assert [float(rows[0][side]) for side in ("x0", "y0", "x1", "y1")] == [0, 1, 2, 3.5]


def test_the_worst_images_have_most_misses_and_images_without_a_miss_are_none():
    ranked = worst_images([*OBJECTS, made(FOUND, image=4)], 9)
    assert [image for image, _ in ranked] == [3, 2]  # both miss two, of two and of three
    assert [image for image, _ in worst_images(OBJECTS, 1)] == [3]


def test_an_empty_data_set_sums_to_nothing():
    found = summary([], NAMES)
    assert found["objects"] == 0
    assert math.isclose(sum(found["verdicts"].values()), 0)
    assert as_csv([]).count("\n") == 1
