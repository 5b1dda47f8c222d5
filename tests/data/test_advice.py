"""The numbers of the doctor, by hand."""

import numpy as np
import pytest

from sparse_detr import recipes
from sparse_detr.data.advice import FINER_LEVEL, TILES, changes_for, facts_of, objects_at_training_size
from sparse_detr.data.annotations import coco_file_of
from sparse_detr.data.duplicates import find_duplicates, find_leaks, fingerprint
from sparse_detr.data.plan import Plan, Resize
from sparse_detr.data.preset_choice import choose_preset


def coco(boxes_of_images, *, width=100, height=50):
    """Return a COCO file of images of one size, with boxes x, y, width, height of one class."""
    images, annotations = [], []
    for number, boxes in enumerate(boxes_of_images, start=1):
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for box in boxes:
            item = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": list(box), "iscrowd": 0}
            annotations.append(item)
    categories = [{"id": 1, "name": "thing"}]
    return coco_file_of("made.json", {"images": images, "annotations": annotations, "categories": categories})


def changes(boxes_of_images, plan, *, least=8.0, **size):
    data = coco(boxes_of_images, **size)
    found = changes_for([(data, ())], objects_at_training_size(data, (), plan), plan, least)
    return {change.key: change.value for change in found}


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(100, 50, 2.0), (50, 100, 2.0), (1000, 100, 0.2), (300, 200, 0.5)]
)
def test_the_short_side_gets_its_length_unless_the_long_side_becomes_too_long(width, height, expected):
    assert Resize(100, 200).scale(width, height) == expected


def test_objects_and_tokens_are_those_of_the_training_size():
    plan = Plan(resize=Resize(100, 400), strides=(8, 16))
    objects = objects_at_training_size(coco([[(0, 0, 20, 10), (0, 0, 4, 4)]]), (), plan)

    assert objects.images.tolist() == [[200, 100]]
    assert objects.sides.tolist() == [[40, 20], [8, 8]]
    assert objects.tokens(8).tolist() == [12.5, 1.0]
    assert objects.lengths.tolist() == [800**0.5, 8.0]
    assert objects.shares.tolist() == [[0.2, 0.2], [0.04, 0.08]]
    # Stride 8: 25 x 13 tokens, centres 4, 12, ...: 5 x 2 in the box. Stride 16: 13 x 7, centres 8, 24, 40: 2 x 1.
    assert objects.num_tokens.tolist() == [25 * 13 + 13 * 7]
    assert objects.cover.tolist() == [(10 + 2) / 416]
    assert objects.counts.tolist() == [2]


def test_tokens_in_two_boxes_count_once_and_boxes_end_at_the_image():
    plan = Plan(resize=Resize(50, 100), strides=(10,))
    objects = objects_at_training_size(coco([[(0, 0, 20, 20), (10, 10, 20, 20), (90, 40, 40, 40)]]), (), plan)
    assert objects.cover.tolist() == [(4 + 4 - 1 + 1) / 50]
    assert objects.sides[2].tolist() == [10, 10]


def test_facts_name_every_level():
    plan = Plan(resize=Resize(100, 400), strides=(8, 16))
    facts = facts_of(objects_at_training_size(coco([[(0, 0, 20, 10)]]), (), plan), plan)
    assert facts == {
        "width of an image at the training size (median)": 200,
        "height of an image at the training size (median)": 100,
        "root of an object's area at the training size (median)": 28.3,
        "tokens of an object on the level of stride 8 (median)": 12.5,
        "tokens of an object on the level of stride 16 (median)": 3.12,
        "share of the tokens that lie in objects (median of images)": round(12 / 416, 3),
    }
    assert facts_of(objects_at_training_size(coco([[]]), (), plan), plan) == {}


def test_queries_and_detections_have_room_for_the_fullest_image():
    boxes = [[(index, 1, 20, 20 + index % 3) for index in range(61)], [(1, 1, 20, 20)]]
    plan = Plan(num_queries=60, num_detections=50, evaluation_limit=55)
    assert changes(boxes, plan) == {
        "model.queries.num_queries": 100,  # 61 * 1.5 = 91.5
        "model.postprocess.num_detections": 100,  # 61
        "dataloader.evaluator.max_dets_per_image": 100,
    }
    assert changes(boxes, Plan(num_queries=61, num_detections=61, evaluation_limit=61)) == {}


def test_the_fullest_image_may_be_one_for_validation():
    train, val = coco([[(1, 1, 20, 20)]]), coco([[(index, 1, 20, 20) for index in range(70)]])
    plan = Plan(num_queries=60)
    (change,) = changes_for([(train, ()), (val, ())], objects_at_training_size(train, (), plan), plan, 8.0)
    assert (change.key, change.value) == ("model.queries.num_queries", 150)  # 70 * 1.5 = 105


def test_small_objects_ask_for_a_larger_size_and_very_small_ones_for_tiles_too():
    six, two = [[(5, 5, 6, 6)]] * 4, [[(5, 5, 2, 2)]] * 4
    plan = Plan(resize=Resize(50, 100))
    sizes = {
        "dataloader.train.mapper.augmentations.short_sizes": [96],  # 50 * 8 / 6 = 66.7
        "dataloader.train.mapper.augmentations.max_size": 160,  # 133.3
        "dataloader.test.mapper.augmentations.short_size": 96,
        "dataloader.test.mapper.augmentations.max_size": 160,
    }
    assert changes(six, plan) == sizes
    assert changes(six, plan, least=6) == {}
    several = changes(six, Plan(resize=Resize(50, 100), short_sizes=(40, 50, 100)))
    assert several["dataloader.train.mapper.augmentations.short_sizes"] == [64, 96, 160]  # 53.3, 66.7, 133.3
    tiles = changes(two, plan)
    assert tiles["dataloader.train.mapper.augmentations.short_sizes"] == [128]  # twice 50, in steps of 32
    assert tiles[""] == TILES


def test_the_finest_level_asks_for_a_token_in_each_object():
    plan = Plan(resize=Resize(50, 100), strides=(16, 32))
    asked = changes([[(5, 5, 12, 12)]] * 4, plan)
    assert asked["dataloader.train.mapper.augmentations.short_sizes"] == [96]
    assert asked[""] == FINER_LEVEL
    fine = Plan(resize=Resize(50, 100), strides=(4, 8))
    assert "" not in changes([[(5, 5, 6, 6)]] * 4, fine)
    assert "" not in changes([[(5, 5, 30, 30)]] * 4, Plan(resize=Resize(50, 100), strides=(32,)))


def test_the_backbones_that_are_proposed_have_a_level_of_stride_4():
    for backbone in ("resnet(50, num_maps=4)", "mobilenet_v2(strides=(4, 8, 16, 32))"):
        assert backbone in FINER_LEVEL
        assert eval(backbone, vars(recipes)).strides == (4, 8, 16, 32)


def test_large_objects_ask_for_no_crops():
    boxes = [[(5, 5, 60, 20)]]
    assert changes(boxes, Plan(crops=True)) == {"dataloader.train.mapper.augmentations.crop_range": None}
    assert changes(boxes, Plan(crops=False)) == {}
    assert changes([[(5, 5, 40, 20)]], Plan(crops=True)) == {}


def test_the_keep_ratio_gives_each_object_some_tokens_and_is_lower_where_objects_are_few():
    plan = Plan(resize=Resize(50, 100), strides=(10,), keep_ratio=0.1)  # 50 tokens, of which 5 are kept
    four = [[(20 * index, 0, 19, 19) for index in range(4)]]
    assert changes(four, plan) == {"model.selector.budget.keep_ratio": 0.35}  # 4 tokens for each of 4 objects: 0.32
    sparse = Plan(resize=Resize(50, 100), strides=(10,), keep_ratio=0.5)
    assert changes([[(0, 0, 20, 20)]], sparse) == {"model.selector.budget.keep_ratio": 0.2}  # twice 4 / 50: 0.16
    assert changes(four, Plan(resize=Resize(50, 100), strides=(10,), keep_ratio=1.0)) == {}
    assert changes(four, Plan(resize=Resize(50, 100), keep_ratio=0.1)) == {}


def test_data_without_boxes_ask_for_nothing():
    assert changes([[], []], Plan(resize=Resize(50, 100), strides=(10,), keep_ratio=0.1, crops=True)) == {}


def noise(seed, size=(64, 64)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def smooth(seed):
    return np.kron(np.random.default_rng(seed).integers(0, 256, (16, 17, 3), dtype=np.uint8), np.ones((4, 4, 1), "u1"))


def test_equal_pixels_are_exact_and_nearly_equal_ones_near():
    image = smooth(0)
    near = np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8)
    images = [
        ("a", fingerprint(image)),
        ("b", fingerprint(near)),
        ("c", fingerprint(image)),
        ("d", fingerprint(smooth(1))),
    ]
    exact, near_ones = find_duplicates(images)
    assert (exact.code, exact.examples) == ("duplicate-image", ("c = a",))
    assert (near_ones.code, near_ones.examples) == ("near-duplicate-image", ("b ~ a",))
    leaked, near_leaked = find_leaks(images[:1], images[1:])
    assert leaked.examples == ("c = a",)
    assert near_leaked.examples == ("b ~ a",)


def test_the_same_bytes_in_another_shape_are_other_pixels():
    flat = np.zeros((4, 8, 3), np.uint8)
    images = [("a", fingerprint(flat)), ("b", fingerprint(flat.reshape(8, 4, 3)))]
    assert find_duplicates(images) == []


def test_images_of_one_gray_are_no_near_duplicates():
    images = [(str(value), fingerprint(np.full((20, 20, 3), value, np.uint8))) for value in (0, 10, 200)]
    assert find_duplicates(images) == []


@pytest.mark.parametrize("bits", [16, 17])
def test_images_are_near_up_to_sixteen_bits(bits):
    first = fingerprint(noise(1))
    flipped = first.bits.copy()
    flipped[:bits] = ~flipped[:bits]
    images = [("a", first), ("b", type(first)(b"other", flipped))]
    assert len(find_duplicates(images)) == (bits == 16)


def test_many_images_are_compared_in_blocks():
    images = [(str(number), fingerprint(noise(number, (17, 17)))) for number in range(1100)]
    images.append(("copy", type(images[3][1])(b"new", images[3][1].bits)))
    (finding,) = find_duplicates(images)
    assert finding.examples == ("copy ~ 3",)


def preset(boxes_of_images, images):
    data = coco(boxes_of_images)
    return choose_preset(objects_at_training_size(data, (), Plan()), [("x", fingerprint(image)) for image in images])


def test_presets_are_proposed_by_the_numbers_of_the_data():
    one, many = [[(5, 5, 40, 30)]] * 6, [[(index * 5, 5, 4, 3) for index in range(15)]] * 6
    photos, camera = [smooth(seed) for seed in range(6)], [np.maximum(smooth(0), seed) for seed in range(6)]

    assert preset(one, photos).name == "photos"
    assert preset(many, photos).name == "aerial"
    assert preset(many, camera).name == "industrial"
    assert preset(one[:3], photos) is None
    assert str(preset(many, photos)) == (
        "augmentation preset: aerial (the median object is 5% of the image's length, 15.0 objects an image)"
    )
