"""The presets change images as their table says, and the boxes follow."""

import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T

from sparse_detr.data.augmentation import train_augmentations
from sparse_detr.data.presets import (
    MAX_NOISE,
    MAX_RADIUS,
    PRESETS,
    QuarterTurn,
    RandomBlur,
    RandomNoise,
    RandomQuarterTurn,
    preset_augmentations,
)
from sparse_detr.data.stream import SAMPLE, seeded_rng
from sparse_detr.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def augmented(augmentations, image, seed):
    with seeded_rng(SAMPLE, 0, seed):
        output = T.AugInput(image.copy())
        transforms = T.AugmentationList(augmentations)(output)
    return output.image, transforms


@pytest.mark.parametrize(
    ("quarters", "image", "box"),
    [
        (0, [[1, 2, 3], [4, 5, 6]], [1, 0, 3, 1]),
        (1, [[3, 6], [2, 5], [1, 4]], [0, 0, 1, 2]),
        (2, [[6, 5, 4], [3, 2, 1]], [0, 1, 2, 2]),
        (3, [[4, 1], [5, 2], [6, 3]], [1, 1, 2, 3]),
    ],
)
def test_a_quarter_turn_by_hand(quarters, image, box):
    """The box is around 2 and 3 in the first row."""
    turn = QuarterTurn(2, 3, quarters)
    before = np.array([[1, 2, 3], [4, 5, 6]])
    assert turn.apply_image(before).tolist() == image
    assert turn.apply_box(np.array([[1, 0, 3, 1]])).tolist() == [box]
    assert turn.inverse().apply_image(np.array(image)).tolist() == before.tolist()
    assert turn.inverse().apply_box(np.array([box])).tolist() == [[1, 0, 3, 1]]


def test_all_four_turns_come_as_often():
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    turns = [augmented([RandomQuarterTurn()], image, seed)[1].transforms[0].quarters for seed in range(400)]
    assert all(70 < turns.count(quarters) < 130 for quarters in range(4))


def bright_region(image):
    """Return x0, y0, x1, y1 of the pixels nearer to the brightest than to the darkest; None if there are none."""
    gray = image.astype(float).mean(2)
    if gray.max() - gray.min() < 60:
        return None
    rows, columns = np.nonzero(gray > (gray.max() + gray.min()) / 2)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("preset", PRESETS)
def test_boxes_follow_the_preset_and_the_resizes_and_crops_after_it(preset):
    image = np.full((90, 120, 3), 30, dtype=np.uint8)
    image[20:50, 70:110] = 220
    steps = train_augmentations(
        short_sizes=(96, 128), max_size=200, crop_range=(60, 90), crop_short_sizes=(90, 100), preset=preset
    )
    seen = 0
    for seed in range(60):
        changed, transforms = augmented(steps, image, seed)
        region = bright_region(changed)
        if region is None:
            continue
        height, width = changed.shape[:2]
        [box] = transforms.apply_box(np.array([[70.0, 20.0, 110.0, 50.0]]))
        np.testing.assert_allclose(np.clip(box, 0, [width, height] * 2), region, atol=2)
        seen += 1
    assert seen > 45


def moves_up(preset, seed):
    """Return whether a bright upper left corner of a wide image is now elsewhere than at the top."""
    image = np.full((8, 12, 3), 40, dtype=np.uint8)
    image[:4] = 200
    changed, _ = augmented(preset_augmentations(preset), image, seed)
    return changed[:4].mean() < changed[4:].mean() or changed.shape != image.shape


def test_photographs_are_never_upside_down_and_the_others_are():
    share = {preset: np.mean([moves_up(preset, seed) for seed in range(100)]) for preset in PRESETS}
    assert share["photos"] == 0
    assert share["aerial"] > 0.5
    assert share["industrial"] > 0.5


def names(preset):
    return {type(getattr(step, "aug", step)).__name__ for step in preset_augmentations(preset)}


def test_each_preset_has_its_own_steps():
    assert names("photos") == {"RandomFlip", "RandomBrightness", "RandomContrast", "RandomSaturation"}
    assert names("aerial") - names("photos") == {"RandomQuarterTurn", "RandomBlur"}
    assert names("industrial") == (names("aerial") | {"RandomNoise"}) - {"RandomSaturation"}


def test_noise_has_the_drawn_size_and_stays_in_range():
    image = np.full((50, 50, 3), 128, dtype=np.uint8)
    spreads = [augmented([RandomNoise()], image, seed)[0].std() for seed in range(60)]
    assert 0 <= min(spreads) < 1
    assert MAX_NOISE * 0.8 < max(spreads) <= MAX_NOISE * 1.05
    black, _ = augmented([RandomNoise()], np.zeros((9, 9, 3), dtype=np.uint8), 1)
    assert black.dtype == np.uint8
    assert black.max() < 50  # nothing has wrapped around


def test_a_blur_smooths_and_keeps_the_mean():
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    image[:, 20:] = 200
    changed = [augmented([RandomBlur()], image, seed)[0] for seed in range(20)]
    assert MAX_RADIUS == 1.5
    assert all(abs(float(one.mean()) - 100) < 1 for one in changed)
    assert any(20 < one[20, 20, 0] < 180 for one in changed)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_place_of_the_training_gives_the_same_image(preset):
    image = np.random.RandomState(0).randint(0, 256, (30, 40, 3), dtype=np.uint8)
    steps = train_augmentations(short_sizes=(32, 48), max_size=80, crop_range=None, preset=preset)
    one, again, other = (augmented(steps, image, seed)[0] for seed in (7, 7, 8))
    assert np.array_equal(one, again)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_a_preset_stands_in_the_place_of_flip_and_color_jitter():
    options = {"short_sizes": (8,), "max_size": 8, "crop_range": None}
    with_both = train_augmentations(**options, flip="both", color_jitter=0.5, preset="photos")
    alone = train_augmentations(**options, preset="photos")
    assert [repr(step) for step in with_both] == [repr(step) for step in alone]


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match="preset is 'xray'; give one of photos, aerial, industrial"):
        train_augmentations(preset="xray")


def test_the_table_of_the_page_has_the_numbers_of_the_presets():
    rows = {
        cells[0]: cells[1:]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
    }
    presets = [PRESETS[re.sub("`", "", name)] for name in rows["what is drawn for every image"]]
    for row, field in (("brightness", "brightness"), ("contrast", "contrast"), ("saturation", "saturation")):
        numbers = [f"± {100 * getattr(preset, field):.0f} %" if getattr(preset, field) else "" for preset in presets]
        assert rows[row] == numbers
    for row, field in (("blur up to 1.5 pixels", "blur"), ("noise up to 8 of 255", "noise")):
        numbers = [f"{100 * getattr(preset, field):.0f} %" if getattr(preset, field) else "" for preset in presets]
        assert rows[row] == numbers
    assert rows["turns by 90, 180, 270 degrees"] == ["yes" if preset.turns else "" for preset in presets]
    assert rows["flips"] == [{"both": "both ways"}.get(preset.flip, preset.flip) for preset in presets]
