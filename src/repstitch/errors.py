"""Errors that the caller can correct.

Each message names the argument and states what it must be, what was passed and what to do. It contains no secrets.
"""

from repstitch.redaction import redact


class InputError(ValueError):
    """An argument, a file or a row is invalid. The command line exits with status 2; the service answers 4xx."""

    def __init__(self, message: str = ""):
        super().__init__(redact(message))


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
    message = redact(" ".join(str(error).split()))
    if "allow_pickle" in message:  # NumPy's advice on any file that it does not know, which would run code in the file
        return NO_ARRAY
    return message[:300] or type(error).__name__


NO_ARRAY = "it must contain arrays of numbers or text, as `numpy.save` writes them; Python objects are not read"
