"""Checks of arguments that import neither NumPy nor torch, so that the command line answers at once."""

from collections.abc import Sequence

from repstitch.errors import InputError

MOST_DRAWS = 100_000


def check_choice(argument: str, value: str, allowed: Sequence[str]) -> None:
    """Raise InputError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise InputError(f"`{argument}` must be one of {', '.join(allowed)}; got {value!r}.")


def check_seed(seed: int, argument: str = "`seed`") -> None:
    """Raise InputError unless the seed is from 0 to 4294967295, which every random generator in use accepts."""
    if not 0 <= seed < 2**32:
        raise InputError(f"{argument} must be a whole number from 0 to 4294967295; got {seed}.")


def check_draws(draws: int, argument: str = "`permutations`") -> None:
    """Raise InputError unless the number of permutations is between 0 and 100,000."""
    if not 0 <= draws <= MOST_DRAWS:
        raise InputError(f"{argument} must be from 0 to {MOST_DRAWS:,}; got {draws}.")


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """The shares of train, validation and test. Raises InputError unless they sum to 1 and only test is 0."""
    parts = tuple(shares)
    if len(parts) != 3 or min(parts) < 0 or not abs(sum(parts) - 1) <= 1e-6 or parts[0] <= 0 or parts[1] <= 0:
        raise InputError(
            f"`split` must be train,validation,test, three shares that sum to 1, only test may be 0; got {parts}."
        )
    return parts
