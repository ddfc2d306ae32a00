"""Errors that the caller can correct: a message names the argument, what it must be, what came and what to do."""


class InputError(ValueError):
    """An argument, file or row that cannot be used. The command line exits with 2, the service answers 4xx."""


class NotFoundError(InputError):
    """There is nothing of that name, or no stitcher between these two spaces. The service answers 404."""


class MissingError(InputError, AttributeError):
    """A record does not hold what was asked of it. As an AttributeError it makes `hasattr(record, name)` false."""


class ConflictError(InputError):
    """Several stitchers fit the request, so the caller must name one. The service answers 409."""


def one_line(error: BaseException) -> str:
    """Another library's message as one line of at most 300 characters, or the error's name where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
