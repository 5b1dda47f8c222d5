"""Augmentations for a kind of images: photographs, aerial images, pictures of an inspection line."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from PIL import Image, ImageFilter

from sparse_detr.errors import UserError


@dataclass(frozen=True)
class Preset:
    """What is drawn for every image.

    Args:
        flip: "horizontal", or "both" for vertical too; each with probability 0.5.
        turns: by 0, 90, 180 or 270 degrees, each as often.
        brightness, contrast, saturation: each is multiplied by 1 +- this much.
        blur: probability of a Gaussian blur with a radius up to `MAX_RADIUS` pixels.
        noise: probability of Gaussian noise with a standard deviation up to `MAX_NOISE` of 255.
    """

    flip: str
    turns: bool
    brightness: float
    contrast: float
    saturation: float
    blur: float
    noise: float

    def augmentations(self) -> list[T.Augmentation]:
        """Return what changes an image before it is resized; boxes follow."""
        horizontal = T.RandomFlip(horizontal=True, vertical=False)
        vertical = T.RandomFlip(horizontal=False, vertical=True)
        steps: list[tuple[Any, T.Augmentation]] = [
            (True, horizontal),
            (self.flip == "both", vertical),
            (self.turns, RandomQuarterTurn()),
            (self.brightness, T.RandomBrightness(1 - self.brightness, 1 + self.brightness)),
            (self.contrast, T.RandomContrast(1 - self.contrast, 1 + self.contrast)),
            (self.saturation, T.RandomSaturation(1 - self.saturation, 1 + self.saturation)),
            (self.blur, T.RandomApply(RandomBlur(), prob=self.blur)),
            (self.noise, T.RandomApply(RandomNoise(), prob=self.noise)),
        ]
        return [step for wanted, step in steps if wanted]


PRESETS = {
    # there is an up and a down, and colours tell
    "photos": Preset("horizontal", turns=False, brightness=0.2, contrast=0.2, saturation=0.3, blur=0.0, noise=0.0),
    # no up and down; haze and light change, the focus is at infinity
    "aerial": Preset("both", turns=True, brightness=0.2, contrast=0.3, saturation=0.2, blur=0.1, noise=0.0),
    # parts lie in any direction; lamps age, the camera is short of light, colours are those of the lamp
    "industrial": Preset("both", turns=True, brightness=0.3, contrast=0.3, saturation=0.0, blur=0.2, noise=0.3),
}
MAX_RADIUS = 1.5
MAX_NOISE = 8.0


def preset_augmentations(name: str) -> list[T.Augmentation]:
    """Return the augmentations of a preset, which come before the resize.

    Raises:
        UserError: there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"the augmentation preset is {name!r}; give one of {', '.join(PRESETS)}")
    return PRESETS[name].augmentations()


class QuarterTurn(T.Transform):
    """Turns an image by a multiple of 90 degrees, exactly.

    Args:
        h, w: of the image before, in pixels.
        quarters: counter-clockwise, 0 to 3.
    """

    def __init__(self, h: int, w: int, quarters: int) -> None:
        super().__init__()
        self.h, self.w, self.quarters = h, w, quarters

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Turn an (H, W) or (H, W, C) image."""
        return np.ascontiguousarray(np.rot90(img, self.quarters))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Turn points, (N, 2) x and y in pixels."""
        x, y = coords[:, 0], coords[:, 1]
        turned = {0: (x, y), 1: (y, self.w - x), 2: (self.w - x, self.h - y), 3: (self.h - y, x)}[self.quarters]
        return np.stack(turned, axis=1)

    def inverse(self) -> T.Transform:
        """Return the turn back."""
        h, w = (self.w, self.h) if self.quarters % 2 else (self.h, self.w)
        return QuarterTurn(h, w, -self.quarters % 4)


class RandomQuarterTurn(T.Augmentation):
    """Turns by 0, 90, 180 or 270 degrees, each as often."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the turn of an image."""
        return QuarterTurn(*image.shape[:2], int(np.random.randint(4)))


class RandomBlur(T.Augmentation):
    """Blurs with a Gaussian whose radius is drawn between 0 and `MAX_RADIUS` pixels."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the blur of an (H, W, 3) uint8 image."""
        kernel = ImageFilter.GaussianBlur(np.random.uniform(0, MAX_RADIUS))
        return T.ColorTransform(lambda img: np.asarray(Image.fromarray(img).filter(kernel)))


class RandomNoise(T.Augmentation):
    """Adds Gaussian noise to every value, with a standard deviation drawn between 0 and `MAX_NOISE` of 255."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw the noise of a uint8 image."""
        noise = np.random.normal(0.0, np.random.uniform(0, MAX_NOISE), image.shape)
        return T.ColorTransform(lambda img: np.clip(img + noise, 0, 255).round().astype(np.uint8))
