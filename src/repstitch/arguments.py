"""Checks of arguments. They import neither NumPy nor torch, so the command line reports a mistake at once."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

from repstitch.errors import InputError
from repstitch.text import nearest

MOST_DRAWS = 100_000

P = ParamSpec("P")
T = TypeVar("T")


def check_choice(argument: str, value: object, allowed: Sequence[str | bool]) -> None:
    """Raise InputError unless `value` is one of `allowed`."""
    if not isinstance(value, str | bool) or value not in allowed:
        raise InputError(f"`{argument}` must be one of {', '.join(map(str, allowed))}; got {value!r}.")


def check_keywords(function: str, keywords: Iterable[str], parameters: Collection[str]) -> None:
    """Raise InputError if a keyword is not one of `parameters`. The message suggests the most similar parameter."""
    for keyword in keywords:
        if keyword not in parameters:
            similar = nearest(keyword, parameters)
            advice = f"did you mean `{similar[0]}`?" if similar else f"it takes {', '.join(sorted(parameters))}."
            raise InputError(f"`{keyword}` is not a parameter of {function}; {advice}")


def names_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function so that an unknown keyword argument raises InputError with a suggestion, not TypeError."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_keywords(function.__name__, kwargs, parameters)
        return function(*args, **kwargs)

    return checked


def check_whole(value: int, argument: str) -> int:
    """Return the value as an `int`. Raises InputError unless it is a Python or NumPy integer."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{argument} must be a whole number; got {value!r}.")
    return int(value)


def check_seed(seed: int, argument: str = "`seed`") -> int:
    """Return the seed. Raises InputError unless it is a whole number from 0 to 4294967295.

    All random generators that the package uses accept this range.
    """
    if not 0 <= check_whole(seed, argument) < 2**32:
        raise InputError(f"{argument} must be a whole number from 0 to 4294967295; got {seed}.")
    return int(seed)


def check_draws(draws: int, argument: str = "`permutations`") -> int:
    """Return the number of permutations. Raises InputError unless it is a whole number from 0 to 100,000."""
    if not 0 <= check_whole(draws, argument) <= MOST_DRAWS:
        raise InputError(f"{argument} must be from 0 to {MOST_DRAWS:,}; got {draws}.")
    return int(draws)


def check_positive(count: int, argument: str) -> int:
    """Return the count. Raises InputError unless it is a whole number of at least 1."""
    if check_whole(count, argument) < 1:
        raise InputError(f"{argument} must be at least 1; got {count}.")
    return int(count)


def check_neighbours(k: int, n: int) -> int:
    """Return the number of neighbours. Raises InputError unless 1 ≤ k < n, with n the number of rows."""
    if not 1 <= check_whole(k, "`k`") < n:
        raise InputError(f"`k` must be at least 1 and below the number of rows ({n}); got {k}.")
    return int(k)


def check_unmasked(values: Any, subject: str) -> None:
    """Raise InputError if `values` is a masked NumPy array, or a list or tuple that contains one.

    Conversion to a plain array would drop the mask without notice.
    """
    for part in values if isinstance(values, list | tuple) else (values,):
        if hasattr(part, "filled") and hasattr(part, "mask"):
            raise InputError(
                f"{subject} must not be a masked array, because its mask would be lost; remove the masked rows first."
            )


def check_port(port: int) -> None:
    """Raise InputError unless `port` is a TCP port number from 0 to 65535, where 0 means any free port."""
    if not 0 <= port < 2**16:
        raise InputError(f"`port` must be a number from 0 to 65535; got {port}.")


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """Return the shares of train, validation and test.

    Raises InputError unless they are three numbers that sum to 1. Only the share of test may be 0.
    """
    parts = tuple(shares)
    if len(parts) != 3 or min(parts) < 0 or not abs(sum(parts) - 1) <= 1e-6 or parts[0] <= 0 or parts[1] <= 0:
        raise InputError(
            f"`split` must be three shares (train,validation,test) that sum to 1; only test may be 0; got {parts}."
        )
    return parts
