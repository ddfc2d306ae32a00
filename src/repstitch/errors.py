"""The errors a caller can mend: every message names the argument, what it must be, what came and what to do."""


class InputError(ValueError):
    """Something the caller gave cannot be used as it is. The command line exits with 2, the service answers 4xx."""


class NotFoundError(InputError):
    """A name or a pair of spaces that nothing here answers to. The service answers 404."""


class ConflictError(InputError):
    """Several things answer to what was asked, so a choice is needed first. The service answers 409."""


def one_line(error: BaseException) -> str:
    """Another library's message as one line of at most 300 characters, or the error's name where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
