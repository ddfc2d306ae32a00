"""Compare the rows of a corpus with the pairs that a map is trained on: are they from the same domain?"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.precision import exact_products

ALIKE = 0.5
MOST_APART = 0.75  # halfway between a corpus that is like the pairs and one that has nothing in common with them
MOST_ROWS = 5_000
LEAST_ROWS = 20
TILE_ROWS = 1_024
SAME_ROW = 1 - 1e-6  # cosine above which a corpus row is the source row of a pair


@dataclass(frozen=True)
class Likeness:
    """How like the pairs a corpus is.

    Args:
        rows: Number of corpus rows, and of source rows of pairs, that were compared.
        apart: Share of the corpus rows that are nearer to another corpus row than to any pair. 0.5 if corpus and pairs
            are from the same domain, and 1 if they have nothing in common. It is a size of effect, so it does not grow
            with the number of rows.
    """

    rows: int
    apart: float

    @property
    def unlike(self) -> bool:
        """Whether `apart` is above 0.75, so that scores on these pairs say little about the corpus."""
        return self.apart > MOST_APART

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"unlike": self.unlike}

    def __str__(self) -> str:
        share = f"{100 * self.apart:.0f} % of its rows are nearer to each other than to any pair (alike: 50 %)"
        return f"The corpus is {'unlike' if self.unlike else 'like'} the pairs: {share}."


@exact_products()
def compare_with_pairs(corpus: np.ndarray, pairs: np.ndarray, seed: int = 0) -> Likeness:
    """Compare a random sample of a corpus with the source rows of pairs.

    As many rows of each are drawn, at most 5,000. Corpus rows that are source rows of pairs are left out. The statistic
    is that of Schilling 1986, "Multivariate Two-Sample Tests Based on Nearest Neighbors", with one neighbour and by
    cosine, for one of the two samples.

    Args:
        corpus: Rows of the corpus in the source space (n, d).
        pairs: Source rows of pairs (m, d).
        seed: Seed of the draws.

    Returns:
        The comparison.

    Raises:
        InputError: If fewer than 20 rows of either are left.
    """
    sides = [
        normalise(torch.tensor(np.asarray(rows, np.float32)), "unit", name)
        for rows, name in ((corpus, "corpus rows"), (pairs, "pairs"))
    ]
    of_corpus = sides[0][_nearest_cosine(sides[0], sides[1]) < SAME_ROW]
    n = min(len(of_corpus), len(sides[1]), MOST_ROWS)
    if n < LEAST_ROWS:
        raise InputError(
            f"At least {LEAST_ROWS} rows of the corpus that are in no pair, and as many pairs, are needed to compare "
            f"them; got {len(of_corpus)} and {len(sides[1])}."
        )
    random = np.random.default_rng(seed)
    drawn = [side[torch.from_numpy(random.permutation(len(side))[:n])] for side in (of_corpus, sides[1])]
    apart = _nearest_cosine(drawn[0], drawn[0], exclude_self=True) > _nearest_cosine(drawn[0], drawn[1])
    return Likeness(n, float(apart.double().mean()))


def _nearest_cosine(rows: Tensor, others: Tensor, exclude_self: bool = False) -> Tensor:
    """Return the cosine (n,) of each unit row to the nearest of the others; rows are in their place if excluded."""
    nearest: list[Tensor] = []
    for at in range(0, len(rows), TILE_ROWS):
        similar = rows[at : at + TILE_ROWS] @ others.T
        if exclude_self:
            positions = torch.arange(len(similar))
            similar[positions, at + positions] = -torch.inf
        nearest.append(similar.amax(1))
    return torch.cat(nearest)
