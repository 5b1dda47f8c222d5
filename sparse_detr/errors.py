"""Errors whose cause a user can mend."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """An error of the input; the message names the value and the remedy, and commands print it without a traceback."""


class ImageError(UserError):
    """An error: an image cannot be used; the message names the image, the reason and the remedy."""


class WorkerError(UserError):
    """A `UserError` for data-loading processes, without the traceback that PyTorch puts before the message.

    PyTorch creates the error again in the main process; because the class has the attribute `message`, it calls
    `WorkerError(message=...)`.
    """

    message = True

    def __init__(self, *, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script and exit with the status of its `main`; a `UserError` is one line of standard error and status 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
