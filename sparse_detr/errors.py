"""Errors that a user can mend."""


class UserError(ValueError):
    """Wrong input whose message names the value and the remedy; commands print it without a traceback."""


class WorkerError(UserError):
    """A `UserError` that a loading process may raise; PyTorch puts that process's traceback before its message.

    PyTorch makes such an error anew from `message`, because the class has that attribute.
    """

    message = True

    def __init__(self, *, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
