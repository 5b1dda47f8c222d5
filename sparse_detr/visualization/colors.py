"""One colour a class, the same in every picture."""

from colorsys import hls_to_rgb

Color = tuple[int, int, int]

# Bright on photographs, told apart by lightness as well as by hue; further classes walk round the hues.
_FIRST_CLASSES: tuple[Color, ...] = (
    (0, 190, 255),
    (255, 205, 40),
    (255, 92, 122),
    (70, 222, 120),
    (186, 140, 255),
    (255, 140, 40),
    (20, 228, 205),
    (255, 120, 225),
    (190, 245, 60),
    (125, 160, 255),
)
_GOLDEN_RATIO = 0.618034


def class_color(label: int) -> Color:
    """Return the RGB colour of a class index."""
    if label < len(_FIRST_CLASSES):
        return _FIRST_CLASSES[label]
    lightness = (0.55, 0.68, 0.78)[label % 3]
    red, green, blue = hls_to_rgb(label * _GOLDEN_RATIO % 1, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(background: Color) -> Color:
    """Return near-black or white, whichever reads better on the background."""
    red, green, blue = background
    return (16, 16, 20) if 0.299 * red + 0.587 * green + 0.114 * blue > 130 else (255, 255, 255)
