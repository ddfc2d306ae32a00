"""Distributions of pairs whose rows are drawn without end, so that the truth of a score can be computed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.fit.closed_form import decompose, fit_closed
from repstitch.metrics.moments import moments

TRAINING = 1000
LATENT, WIDTH, CLUSTERS = 16, 32, 12
Translate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class World:
    """A distribution of pairs: latent rows, seen by each space through its own linear map, with noise.

    `shift` moves each space away from 0, so that its rows lie in a cone and some rows become hubs. Only the first
    `shared` latent directions are common to both spaces. `related` is False if the two sides of a pair are drawn apart.
    """

    name: str
    latent: str = "gaussian"
    noise: float = 0.5
    shift: float = 0.0
    bent: bool = False
    shared: int = LATENT
    related: bool = True

    def drawn(self, random: np.random.Generator) -> "Source":
        """Return a source of pairs of this world, with views that are drawn once."""
        views = [random.standard_normal((LATENT, WIDTH)) / LATENT**0.5 for _ in range(2)]
        shifts = [self.shift * random.standard_normal(WIDTH) for _ in range(2)]
        return Source(self, random, views, shifts, 2 * random.standard_normal((CLUSTERS, LATENT)))


@dataclass(frozen=True, eq=False)
class Source:
    """A world with fixed views, from which pairs are drawn."""

    world: World
    random: np.random.Generator
    views: list[np.ndarray] = field(repr=False)
    shifts: list[np.ndarray] = field(repr=False)
    centres: np.ndarray = field(repr=False)

    def latent(self, n: int) -> np.ndarray:
        rows = self.random.standard_normal((n, LATENT))
        if self.world.latent == "clusters":
            return self.centres[self.random.integers(CLUSTERS, size=n)] + 0.5 * rows
        if self.world.latent == "heavy tails":
            return rows / np.sqrt(self.random.chisquare(3, size=(n, 1)) / 3)
        return rows

    def seen(self, latent: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return both sides (n, 32) of these latent rows, at unit length."""
        world, sides = self.world, []
        for view, shift in zip(self.views, self.shifts, strict=True):
            common = latent if world.related else self.latent(len(latent))
            directions = np.column_stack([common[:, : world.shared], self.latent(len(common))[:, world.shared :]])
            rows = np.tanh(2 * directions @ view) if world.bent else directions @ view
            rows = rows + shift + world.noise * self.random.standard_normal(rows.shape)
            sides.append(normalise(torch.from_numpy(rows.astype(np.float32)), "unit"))
        return sides[0], sides[1]

    def pairs(self, n: int) -> tuple[Tensor, Tensor]:
        return self.seen(self.latent(n))

    def trained(self, n: int = TRAINING, shuffled: bool = False) -> Translate:
        """Return a ridge map, trained on n new pairs."""
        X, Y = self.pairs(n)
        if shuffled:
            Y = Y[torch.from_numpy(self.random.permutation(n))]
        return fit_closed(decompose(moments((X, Y))), "ridge", {"penalty": 1e-2, "gain": None})

    def pool(self, translate: Translate, n: int, lost: float = 0.0, shuffled: bool = False) -> TranslatedPairs:
        """Return n new pairs with their translations, to which noise of `lost` times their length is added."""
        X, Y = self.pairs(n)
        if shuffled:
            Y = Y[torch.from_numpy(self.random.permutation(n))]
        raw = normalise(translate(X), "unit")
        raw = raw + lost / WIDTH**0.5 * torch.from_numpy(self.random.standard_normal(raw.shape).astype(np.float32))
        return TranslatedPairs(X, Y, raw, normalise(raw, "unit"))


WORLDS = (
    World("Gaussian"),
    World("little noise", noise=0.1),
    World("few shared directions", shared=6),
    World("12 clusters", latent="clusters"),
    World("heavy tails", latent="heavy tails"),
    World("cone with hubs", shift=1.5),
    World("bent", bent=True),
)
