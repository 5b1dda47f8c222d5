"""A saved folder gives the same detections anywhere; columns of images give columns of detections."""

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sparse_detr import Predictor
from sparse_detr.errors import UserError
from tests.test_predictor import (  # noqa: F401 fixtures
    assert_equal,
    folder,
    make_config,
    pixels_of,
    predictor,
    yacs_predictor,
)


@pytest.fixture
def saved(folder, tmp_path):  # noqa: F811
    named = Predictor(
        make_config(), folder / "sparse.pth", class_names=list("abcde"), score_threshold=0.001, budget=0.5
    )
    named.save(tmp_path / "saved", notes="Trained on *nothing*.")
    return named, tmp_path / "saved"


def test_a_saved_folder_gives_the_same_detections_where_the_first_files_are_gone(saved, folder, tmp_path):  # noqa: F811
    named, path = saved
    moved = shutil.move(path, tmp_path / "elsewhere")
    again = Predictor(moved)
    assert again.class_names == list("abcde")
    assert again.options == named.options
    assert_equal(again(folder / "rgb.png"), named(folder / "rgb.png"))
    assert_equal(pickle.loads(pickle.dumps(again))(folder / "rgb.png"), named(folder / "rgb.png"))
    assert_equal(
        Predictor(moved, budget=0.1, score_threshold=0)(folder / "rgb.png"),
        named(folder / "rgb.png", budget=0.1, score_threshold=0),
    )


def test_a_yaml_model_is_saved_too(yacs_predictor, folder, tmp_path):  # noqa: F811
    yacs_predictor.save(tmp_path)
    assert_equal(Predictor(tmp_path)(folder / "rgb.png"), yacs_predictor(folder / "rgb.png"))


def test_the_inference_form_is_saved_as_the_model(folder, tmp_path):  # noqa: F811
    Predictor(make_config(), folder / "sparse.pth", optimize=True).save(tmp_path)
    plain = Predictor(make_config(), folder / "sparse.pth")
    assert_equal(Predictor(tmp_path)(folder / "rgb.png"), plain(folder / "rgb.png"))


def test_the_averaged_weights_are_saved_if_they_were_loaded(folder, tmp_path):  # noqa: F811
    weights = torch.load(folder / "sparse.pth", weights_only=True)["model"]
    averaged = {name: value + 0.01 if value.is_floating_point() else value for name, value in weights.items()}
    torch.save({"model": weights, "ema_state": averaged}, tmp_path / "both.pth")
    ema = Predictor(make_config(), tmp_path / "both.pth", ema=True)
    ema.save(tmp_path / "saved")
    assert_equal(Predictor(tmp_path / "saved")(folder / "rgb.png"), ema(folder / "rgb.png"))


def test_the_card_tells_classes_options_and_notes(saved):
    text = (saved[1] / "README.md").read_text()
    assert text.startswith("# A detector of 5 classes\n\nTrained on *nothing*.\n")
    assert "| classes | a, b, c, d, e |" in text
    assert "score_threshold=0.001" in text
    assert "budget=0.5" in text


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "predictor.json"])
def test_a_partial_folder_is_refused(saved, name):
    (saved[1] / name).unlink()
    with pytest.raises(UserError, match=f"is no saved predictor: it has no {name}; give the config and the weights"):
        Predictor(saved[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2, "version": "9.0"}, "was saved by sparse_detr 9.0; install that version"),
        ({"options": 3}, "no record"),
    ],
)
def test_a_folder_of_a_newer_version_or_with_a_changed_record_is_refused(saved, change, message):
    path = saved[1] / "predictor.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        Predictor(saved[1])


def test_a_budget_that_is_an_object_cannot_be_saved(folder, tmp_path):  # noqa: F811
    from sparse_detr.modeling.selection import LevelBudget

    with pytest.raises(UserError, match="give a number or a text to save the predictor"):
        Predictor(make_config(), folder / "sparse.pth", budget=LevelBudget(shares=[0.5] * 4)).save(tmp_path)


def check_row(boxes, scores, labels, expected):
    np.testing.assert_array_equal(boxes, expected.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(scores, expected.scores.numpy())
    np.testing.assert_array_equal(labels, expected.pred_classes.numpy())
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)


def test_columns_of_images_or_paths_give_columns_of_detections(predictor, folder):  # noqa: F811
    image = pixels_of(folder / "rgb.png")
    expected = predictor(folder / "rgb.png")
    stack = {"image": np.stack([image, image]), "id": np.array([5, 7])}
    ragged = {"image": np.array([image, None], dtype=object)[:1]}
    paths = {"path": np.array([str(folder / "rgb.png"), str(folder / "square.png")])}
    found = predictor(stack)
    assert list(found) == ["id", "boxes", "scores", "labels"]
    assert found["boxes"].dtype == object
    check_row(found["boxes"][1], found["scores"][1], found["labels"][1], expected)
    check_row(*(predictor(ragged)[name][0] for name in ("boxes", "scores", "labels")), expected)
    found = predictor(paths, score_threshold=0.0)
    assert list(found) == ["path", "boxes", "scores", "labels"]
    check_row(*(found[name][1] for name in ("boxes", "scores", "labels")), predictor(folder / "square.png"))


@pytest.mark.parametrize("form", [pixels_of, Image.open, str])
def test_a_row_gives_a_row(predictor, folder, form):  # noqa: F811
    name = "path" if form is str else "image"
    found = predictor({name: form(folder / "rgb.png"), "id": 3})
    assert found["id"] == 3
    check_row(found["boxes"], found["scores"], found["labels"], predictor(folder / "rgb.png"))


def test_a_call_with_columns_needs_no_second_call(predictor, folder):  # noqa: F811
    class OneThread(Predictor):
        """Runs calls in a single thread and waits for them, as Ray Data's wrapper of a callable class does."""

        pool = ThreadPoolExecutor(1)

        def __call__(self, images, **options):
            return self.pool.submit(super().__call__, images, **options).result(timeout=120)

    wrapped = copy.copy(predictor)
    wrapped.__class__ = OneThread
    found = wrapped({"path": [str(folder / "rgb.png")]})
    check_row(*(found[name][0] for name in ("boxes", "scores", "labels")), predictor(folder / "rgb.png"))


def test_columns_without_images_are_refused(predictor):  # noqa: F811
    with pytest.raises(UserError, match="a dict of img, id; give images as `image`, or their paths as `path`"):
        predictor({"img": [], "id": []})
