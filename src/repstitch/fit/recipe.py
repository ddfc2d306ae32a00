"""The settings of a contrastive fit, checked before anything is loaded to run it."""

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

from repstitch.errors import InputError


class RecipeSettings(TypedDict, total=False):
    """The settings of a `Recipe` that callers pass as keywords; `seed` is a parameter of the caller itself."""

    width: int
    dropout: float
    epochs: int
    stop_after: int | None
    patience: int
    batch_size: int
    gallery: int
    learning_rate: float | None
    whitening: float
    clip: float
    temperatures: tuple[float, ...]
    accelerator: str
    devices: int | str
    strategy: str
    checkpoints: str | os.PathLike[str] | None


@dataclass(frozen=True)
class Recipe:
    """How a map is refined. `width` is the residual MLP's hidden width, 0 for a linear map.

    For the objective `match`, `temperatures` are tried as multiples of the one that fits the start best on validation
    rows, and the best run is kept: a softer start helps where the closed form overfits its training rows. `gallery`
    bounds the targets each row is compared with; up to that many pairs, it is all of them. `learning_rate` is relative
    to the root mean square of each tensor at the start, so that it suits any space; None takes the loss's default,
    because larger steps only lose a closed form that is already nearly the best. `devices`, `strategy` and
    `accelerator` are passed to the Lightning Trainer. With `checkpoints`, a folder, a stopped run resumes from its last
    epoch and ends with the same map; a run on other pairs or with other settings starts anew.
    """

    width: int = 0
    dropout: float = 0.3
    epochs: int = 25
    stop_after: int | None = None
    patience: int = 5
    batch_size: int = 512
    gallery: int = 4096
    learning_rate: float | None = None
    whitening: float = 1.0
    clip: float = 1.0
    temperatures: tuple[float, ...] = (1.0, 2.5)
    seed: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    checkpoints: str | os.PathLike[str] | None = None

    def __post_init__(self):
        for name in ("epochs", "patience", "batch_size", "gallery"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InputError(f"`{name}` must be a whole number, at least 1; got {getattr(self, name)!r}.")
        for name, most in (("width", 2**31), ("seed", 2**32 - 1)):
            if type(getattr(self, name)) is not int or not 0 <= getattr(self, name) <= most:
                raise InputError(f"`{name}` must be a whole number from 0 to {most}; got {getattr(self, name)!r}.")
        for name in ("learning_rate", "whitening"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"`{name}` must be a positive number; got {value}.")
        if not 0 <= self.clip < math.inf:
            raise InputError(f"`clip` must not be negative; got {self.clip}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"`dropout` must lie in [0, 1); got {self.dropout}.")
        if self.stop_after is not None and self.stop_after < 1:
            raise InputError(f"`stop_after` must be at least 1; got {self.stop_after}.")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise InputError(f"`temperatures` must be positive multiples; got {self.temperatures}.")


def recipe_for(method: str, width: int = 512, **settings) -> Recipe:
    """The recipe of `linear` or `mlp`, with any of its settings replaced."""
    names = set(asdict(Recipe()))
    unknown = sorted(set(settings) - names)
    if unknown:
        raise InputError(f"`{unknown[0]}` is not a setting of a contrastive fit; known are {', '.join(sorted(names))}.")
    if method == "mlp" and not width:
        raise InputError("`width` of an mlp must be at least 1; without a hidden layer it is the method linear.")
    return replace(Recipe(**settings), width=width if method == "mlp" else 0)
