# pyright: strict
"""What a translation must keep to be used."""

from dataclasses import asdict, dataclass

from repstitch.errors import InputError


@dataclass(frozen=True)
class Thresholds:
    """What counts as good enough.

    `retention`: the share of full re-embedding's score that a translation must keep to be used as it is. `first_stage`:
    the share of full re-embedding's shortlist recall that it must keep to fetch candidates for a second stage.
    """

    retention: float = 0.9
    first_stage: float = 0.95

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not 0 < value <= 1:
                raise InputError(f"`{name}` must lie above 0 and at most at 1; got {value}.")
