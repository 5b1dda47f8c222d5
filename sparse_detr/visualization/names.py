"""Names that others have chosen, made fit for a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

LONGEST = 24


def picture_names(names: Sequence[str], instead: Sequence[str], *, length: int = LONGEST) -> list[str]:
    """Return names that a picture can show: short, each once, in letters that its font has.

    Args:
        names: of classes or runs.
        instead: as many; what is shown for a name with letters that the font lacks, and added to one that occurs twice.
        length: the most letters of a name; of a longer one the middle is left out.
    """
    shown = [
        _shortened(" ".join(name.split()), length) if _is_drawable(name) else other
        for name, other in zip(names, instead, strict=True)
    ]
    counts = Counter(shown)
    return [
        f"{_shortened(name, max(length - len(other) - 3, 9))} ({other})" if counts[name] > 1 else name
        for name, other in zip(shown, instead, strict=True)
    ]


def _shortened(name: str, length: int) -> str:
    end = (length - 3) // 2
    return name if len(name) <= length else f"{name[: length - 3 - end]}...{name[-end:]}"


def _is_drawable(name: str) -> bool:
    text = " ".join(name.split())
    return bool(text) and text.isprintable() and all(ord(letter) in _letters() for letter in text)


@lru_cache
def _letters() -> frozenset[int]:
    """Return the letters of the font that comes with matplotlib, which every picture uses."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
