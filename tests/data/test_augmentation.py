import numpy as np
import pytest
from detectron2.data import transforms as T

from sparse_detr.data import augmentation
from sparse_detr.errors import UserError


def augmented_shapes(augmentations, *, height, width, count):
    shapes = []
    for seed in range(count):
        np.random.seed(seed)
        augmented = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
        T.AugmentationList(augmentations)(augmented)
        shapes.append(augmented.image.shape[:2])
    return shapes


def test_the_test_resize_bounds_the_long_side():
    augmentations = augmentation.test_augmentations(short_size=80, max_size=133)

    assert augmented_shapes(augmentations, height=50, width=60, count=1) == [(80, 96)]
    assert augmented_shapes(augmentations, height=50, width=100, count=1) == [(67, 133)]


def test_training_chooses_every_short_size_and_keeps_the_aspect_without_a_crop():
    augmentations = augmentation.train_augmentations(short_sizes=(32, 64), max_size=100, crop_range=None)

    shapes = augmented_shapes(augmentations, height=20, width=30, count=20)

    assert set(shapes) == {(32, 48), (64, 96)}


def test_half_of_the_training_images_are_cropped_between_the_limits():
    crops = []

    class Spy(T.Augmentation):
        def get_transform(self, image):
            crops.append(image.shape[:2])
            return T.NoOpTransform()

    augmentations = augmentation.train_augmentations(
        short_sizes=(32,), max_size=64, crop_range=(38, 60), crop_short_sizes=(40, 50)
    )
    augmentations.insert(-1, Spy())
    augmented_shapes(augmentations, height=100, width=100, count=200)

    cropped = [shape for shape in crops if shape != (100, 100)]
    assert 70 < len(cropped) < 130
    assert all(38 <= side <= 50 for shape in cropped for side in shape)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (10, 3)])
def test_images_of_extreme_shape_keep_at_least_one_pixel_and_a_bounded_size(height, width):
    augmentations = augmentation.train_augmentations(short_sizes=(48,), max_size=80)

    for shape in augmented_shapes(augmentations, height=height, width=width, count=6):
        assert min(shape) >= 1
        assert max(shape) <= 80


def test_images_can_be_flipped_vertically():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1).repeat(3, axis=-1)
    augmentations = augmentation.train_augmentations(short_sizes=(2,), max_size=2, crop_range=None, flip="both")
    corners = set()
    for seed in range(30):
        np.random.seed(seed)
        augmented = T.AugInput(image)
        T.AugmentationList(augmentations)(augmented)
        corners.add(int(augmented.image[0, 0, 0]))

    assert corners == {0, 1, 2, 3}


def test_color_jitter_changes_the_pixels_and_not_the_type():
    augmentations = augmentation.train_augmentations(
        short_sizes=(8,), max_size=8, crop_range=None, flip="none", color_jitter=0.3
    )
    image = np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    augmented = T.AugInput(image.copy())
    T.AugmentationList(augmentations)(augmented)

    assert augmented.image.dtype == np.uint8
    assert (augmented.image != image).any()


@pytest.mark.parametrize("wrong", [{"flip": "diagonal"}, {"color_jitter": 1.5}])
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        augmentation.train_augmentations(**wrong)
