"""Times of a training as text, such as `2h30m`."""

import re

from sparse_detr.errors import UserError

WORDS = "a time such as 2h30m, 45m or 90s"
_FORM = re.compile(r"(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")


def seconds_in(text: str) -> int:
    """Return the seconds in a time like `2h30m`: hours, minutes and seconds, in this order, any of them left out.

    Raises:
        UserError: the text is no such time, or the time is 0.
    """
    match = _FORM.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    if not (total := 3600 * hours + 60 * minutes + seconds):
        raise UserError(f"{text!r} is no time; give {WORDS}")
    return total


def duration_text(seconds: float) -> str:
    """Return seconds as a text that `seconds_in` reads, without parts that are 0: 9000 gives `2h30m`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{value}{unit}" for value, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if value]
    return "".join(parts) or "0s"


def is_time(value: object) -> bool:
    """Return whether a value is a time that `seconds_in` reads."""
    try:
        return isinstance(value, str) and seconds_in(value) > 0
    except UserError:
        return False
