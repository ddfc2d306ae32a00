"""The settings of refinement by gradient descent. They can be checked without importing Lightning."""

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

from repstitch.errors import InputError


class RecipeSettings(TypedDict, total=False):
    """The settings of a `Recipe` that `train` takes as keywords. `seed` is a separate parameter of `train`."""

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
    """Settings for refining a map by gradient descent, as the methods `linear` and `mlp` do.

    `width` is the hidden width of the residual MLP, 0 for a linear map. For the objective `match`, one run is made for
    each of `temperatures`, as a multiple of the temperature that suits the start best on validation rows, and the best
    run is kept. A higher temperature helps if the closed form overfits its training rows. `gallery` limits the number
    of targets that each row is compared with; with up to that many pairs, a row is compared with all targets.
    `learning_rate` is relative to the root mean square of each tensor at the start, so that it suits any space. None
    means the default of the loss; larger steps only move away from a closed form that is already nearly the best.
    `devices`, `strategy` and `accelerator` are passed to the Lightning Trainer. If `checkpoints` is a folder, a stopped
    run resumes from its last epoch and ends with the same map; a run on other pairs or with other settings starts anew.
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
            raise InputError(f"`dropout` must be at least 0 and below 1; got {self.dropout}.")
        if self.stop_after is not None and self.stop_after < 1:
            raise InputError(f"`stop_after` must be at least 1; got {self.stop_after}.")
        if not self.temperatures or min(self.temperatures) <= 0:
            raise InputError(f"`temperatures` must be positive multiples; got {self.temperatures}.")


def recipe_for(method: str, width: int = 512, **settings) -> Recipe:
    """Return the recipe of the method `linear` or `mlp`, with `settings` in place of the defaults."""
    names = set(asdict(Recipe()))
    unknown = sorted(set(settings) - names)
    if unknown:
        raise InputError(
            f"`{unknown[0]}` is not a setting of the methods linear and mlp; allowed names are "
            f"{', '.join(sorted(names))}."
        )
    if method == "mlp" and not width:
        raise InputError(
            "`width` of an mlp must be at least 1; use the method linear for a map without a hidden layer."
        )
    return replace(Recipe(**settings), width=width if method == "mlp" else 0)
