"""The page holds everything itself, and its arrays are those of the model."""

import base64
import json
import re

import numpy as np
import pytest

from sparse_detr.explain.ledger import Proposal
from sparse_detr.explain.page import page_entry, sampling_points, write_page
from sparse_detr.explain.report import arrays_of, numbers_of, text_of, write_pictures
from tests.explain.conftest import BUDGETS, NAMES, make_story


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_asks_for_nothing_from_elsewhere(page):
    assert re.findall(r"https?://|//cdn|@import|url\(", page) == []
    assert {match.split(":")[0] for match in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data"}


def test_the_page_is_small(page):
    assert len(page) < 400_000


def test_a_class_name_cannot_end_the_script(page):
    assert data_of(page)["images"][0]["truth"][1]["name"] == "dog </script>"


def test_the_refined_tokens_of_every_budget_are_in_the_page(page, story):
    views = data_of(page)["images"][0]["views"]
    assert [view["ratio"] for view in views] == [0.1, 0.3, 0.5, 1.0]
    assert [view["own"] for view in views] == [False, True, False, False]
    for shown, view in zip(views, story.views, strict=True):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(shown["kept"][0]), dtype=np.uint8))
        kept = view.prediction.kept[0].numpy()
        assert np.array_equal(bits[: len(kept)].astype(bool), kept)


def test_a_proposal_is_told_with_every_image(story, dense_story):
    entries = [page_entry(one, NAMES) for one in (story, dense_story)]
    proposal = Proposal("levels:0.2,0.5", 100, 80, detections=9, lost=0, score_change=0.0)
    images = data_of(write_page(entries, model="made up", score_threshold=0.3, proposal=proposal))["images"]
    for image, entry in zip(images, entries, strict=True):
        said = image["ledger"]["sentences"]
        assert said[:-1] == entry["ledger"]["sentences"]
        assert said[-1].startswith("--budget levels:0.2,0.5 would refine 80 instead of 100 tokens")


def test_a_dense_model_has_one_view_and_says_why(page):
    image = data_of(page)["images"][1]
    assert [view["ratio"] for view in image["views"]] == [None]
    assert image["found"] == []
    assert "no budget" in image["no_budget"]
    assert image["explained"]["0"]["dropped"] is not None


def test_a_model_whose_tokens_cannot_be_dropped_still_has_a_page(tmp_path):
    story = make_story("lite")
    assert story.explanations == {}
    assert "no causal tests: this model selects whole levels" in text_of(story, NAMES)
    write_pictures(tmp_path / "lite", story, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_sampling_points_sum_to_the_weights_of_all_layers_and_heads(story):
    points = sampling_points(story, story.views[story.own_view], story.targets[0])
    layers, heads = len(story.views[0].prediction.samples), 4
    assert points[:, 3].sum() == pytest.approx(layers * heads, rel=1e-4)
    assert set(points[:, 2]) == {0, 1, 2, 3}


def test_pictures_arrays_and_numbers_are_written(story, tmp_path):
    write_pictures(tmp_path / "cat", story, NAMES)
    assert {path.name for path in tmp_path.iterdir()} == {"cat_causes.png", "cat_found.png", "cat_compare.png"}
    arrays = arrays_of(story)
    tokens = story.runs.pyramid.num_tokens
    assert arrays["kept"].shape == (len(BUDGETS) + 1, 3, tokens)
    assert arrays["under_1"].shape == arrays["attention_1"].shape == arrays["scores"].shape == (tokens,)
    numbers = json.loads(json.dumps(numbers_of(story, NAMES, "cat.png"), allow_nan=False))
    assert [row["class"] for row in numbers["found_from"]] == NAMES[:2]
    assert numbers["detections"][0]["explanation"]["sentences"][0].startswith("This detection is of class")
    assert numbers["detections"][4]["explanation"] is None
    assert set(numbers["sanity"]) == {"correlation", "map_name", "trained", "random", "random_score"}


def test_a_detection_that_does_not_exist_is_refused():
    from sparse_detr.explain import Choices, explain_image
    from tests.modeling.tiny import build, picture

    item = picture(64, 64)
    with pytest.raises(ValueError, match="there is no detection 99: [0-9]+ have a score of at least 0.3"):
        explain_image(
            build("sparse").eval(), item, np.zeros((64, 64, 3), np.uint8), name="x", choices=Choices(detections=[99])
        )


def test_a_budget_that_is_no_share_of_all_tokens_is_shown_by_what_it_keeps_and_not_searched():
    from sparse_detr.explain import Choices, explain_image
    from tests.modeling.tiny import build, picture

    item = picture(64, 64)
    choices = Choices(score_threshold=0.005, count=1, draws=1, budgets=(0.5, 1.0), rounds=0)
    story = explain_image(
        build("sparse").eval(), item, np.zeros((64, 64, 3), np.uint8), name="x", choices=choices, budget="mass:0.5"
    )
    own = story.views[story.own_view]
    assert own.keep_ratio == int(own.prediction.kept[0].sum()) / story.runs.pyramid.num_tokens < 1
    assert [view.keep_ratio for view in story.views if not view.own] == [0.5, 1.0]
    assert {row.budgets for row in story.found} == {(0.5, 1.0)}


def test_a_model_without_encoder_layers_is_refused():
    from sparse_detr.errors import UserError
    from sparse_detr.explain import ImageRuns
    from tests.modeling.tiny import build, picture

    with pytest.raises(UserError, match="has no layers of its own"):
        ImageRuns(build("imfa").eval(), picture(64, 64))
