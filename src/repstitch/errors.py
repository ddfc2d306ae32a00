"""Errors that the caller can correct.

Each message names the argument and states what it must be, what was passed and what to do.
"""


class InputError(ValueError):
    """An argument, a file or a row is invalid. The command line exits with status 2; the service answers 4xx."""


class NotFoundError(InputError):
    """No object has the requested name, or no stitcher connects the two spaces. The service answers 404."""


class MissingError(InputError, AttributeError):
    """A record does not contain the requested value.

    It is also an AttributeError, so that `hasattr(record, name)` returns False.
    """


class ConflictError(InputError):
    """The named stitcher does not fit the rest of the request. The service answers 409."""


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 300 characters; its class name if it has no message."""
    return " ".join(str(error).split())[:300] or type(error).__name__
