"""Text that the terminal can show."""

import sys


def printable(text: str) -> str:
    """Return the text with escapes for characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
