"""Errors that a user can mend."""


class UserError(ValueError):
    """Wrong input whose message names the value and the remedy; commands print it without a traceback."""
