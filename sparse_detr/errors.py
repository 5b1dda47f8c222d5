"""Errors whose cause a user can mend."""


class UserError(ValueError):
    """An error of the input; the message names the value and the remedy, and commands print it without a traceback."""


class WorkerError(UserError):
    """A `UserError` for data-loading processes, without the traceback that PyTorch puts before the message.

    PyTorch creates the error again in the main process; because the class has the attribute `message`, it calls
    `WorkerError(message=...)`.
    """

    message = True

    def __init__(self, *, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
