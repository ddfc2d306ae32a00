"""Checks of arguments that import neither NumPy nor torch, so that the command line answers at once."""

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
    """Raise InputError on a keyword that `function` does not take, with the parameter that it may stand for."""
    for keyword in keywords:
        if keyword not in parameters:
            similar = nearest(keyword, parameters)
            advice = f"did you mean `{similar[0]}`?" if similar else f"it takes {', '.join(sorted(parameters))}."
            raise InputError(f"`{keyword}` is not a parameter of {function}; {advice}")


def names_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """The function; an unknown keyword raises InputError, which names the nearest parameter, in place of TypeError."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_keywords(function.__name__, kwargs, parameters)
        return function(*args, **kwargs)

    return checked


def check_whole(value: int, argument: str) -> int:
    """The value as Python's `int`. Raises InputError unless it is a whole number, Python's or NumPy's."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{argument} must be a whole number; got {value!r}.")
    return int(value)


def check_seed(seed: int, argument: str = "`seed`") -> int:
    """The seed. Raises InputError unless it is from 0 to 4294967295, which every random generator in use accepts."""
    if not 0 <= check_whole(seed, argument) < 2**32:
        raise InputError(f"{argument} must be a whole number from 0 to 4294967295; got {seed}.")
    return int(seed)


def check_draws(draws: int, argument: str = "`permutations`") -> int:
    """The number of permutations. Raises InputError unless it is between 0 and 100,000."""
    if not 0 <= check_whole(draws, argument) <= MOST_DRAWS:
        raise InputError(f"{argument} must be from 0 to {MOST_DRAWS:,}; got {draws}.")
    return int(draws)


def check_positive(count: int, argument: str) -> int:
    """The count. Raises InputError unless it is a whole number of at least 1."""
    if check_whole(count, argument) < 1:
        raise InputError(f"{argument} must be at least 1; got {count}.")
    return int(count)


def check_neighbours(k: int, n: int) -> int:
    """The number of neighbours. Raises InputError unless it is a whole number that n rows allow."""
    if not 1 <= check_whole(k, "`k`") < n:
        raise InputError(f"`k` must be at least 1 and below the number of rows ({n}); got {k}.")
    return int(k)


def check_unmasked(values: Any, subject: str) -> None:
    """Raise InputError on a masked array of NumPy, or a list with one: as an array it would lose its mask."""
    for part in values if isinstance(values, list | tuple) else (values,):
        if hasattr(part, "filled") and hasattr(part, "mask"):
            raise InputError(f"{subject} is a masked array, whose mask would be lost; leave its masked rows out first.")


def check_port(port: int) -> None:
    """Raise InputError unless this can be the number of a TCP port; 0 stands for any free one."""
    if not 0 <= port < 2**16:
        raise InputError(f"`port` must be a number from 0 to 65535; got {port}.")


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """The shares of train, validation and test. Raises InputError unless they sum to 1 and only test is 0."""
    parts = tuple(shares)
    if len(parts) != 3 or min(parts) < 0 or not abs(sum(parts) - 1) <= 1e-6 or parts[0] <= 0 or parts[1] <= 0:
        raise InputError(
            f"`split` must be train,validation,test, three shares that sum to 1, only test may be 0; got {parts}."
        )
    return parts
