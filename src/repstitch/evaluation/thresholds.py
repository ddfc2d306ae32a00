# pyright: strict
"""The thresholds of the verdicts."""

from dataclasses import dataclass

from repstitch.arguments import check_choice
from repstitch.errors import InputError
from repstitch.names import OLD_MODELS, OldModel

MOST_CHANCE = 0.5  # if a random shortlist scores more than this, poor maps score nearly as well as good ones


@dataclass(frozen=True)
class Thresholds:
    """The shares of full re-embedding's scores that a translation must reach for each verdict, in (0, 1].

    The whole 95 % interval of a share must reach it. If only the share itself does, the verdict is `probably …`.

    `retention` is the share of the score that the verdict `use` requires. `first_stage` is the share of the shortlist
    recall that the verdict `use as first stage` requires. If `old_model` is `gone`, a translation need not be better
    than keeping the old model, because that cannot be kept: only the shares decide.
    """

    retention: float = 0.9
    first_stage: float = 0.95
    old_model: OldModel = "available"

    def __post_init__(self):
        for name in ("retention", "first_stage"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"`{name}` must be above 0 and at most 1; got {getattr(self, name)}.")
        check_choice("old_model", self.old_model, OLD_MODELS)
