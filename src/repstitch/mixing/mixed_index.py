"""One index with native and translated rows, whose similarities to a query are on two scales.

A native row has a cosine of 1 to itself, a translated one less, and so on down the list. So a search by cosine ranks
rows of one kind too high. One number corrects it: the length of the translated rows, where native rows and queries have
length 1. It acts in a search by inner product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, as_matrix
from repstitch.metrics.neighbour_lists import share_contained
from repstitch.metrics.neighbours import nearest, unit
from repstitch.precision import exact_products

K = 10
FEW = 5  # neighbours that tune the length
LENGTHS = tuple(round(0.8 + 0.01 * step, 2) for step in range(41))
MOST_ROWS = 1_000
LEAST_ROWS = 20
DRAWS = 5
FAR = -1e9  # similarity of rows that are no candidates, of which there may be too few
SHARES = (0.05, 0.2, 0.5)


@dataclass(frozen=True)
class MixedScore:
    """A search in an index of which the `share` of the rows is native and all others are translated.

    Args:
        share: Share of native rows, from 0 to 1.
        length: Length of the translated rows; native rows have length 1.
        overlap: Mean share of the ten nearest rows of a fully native index that the search finds. In [0, 1].
        native_share: Share of native rows among the first ten results, which should be near `share`.
    """

    share: float
    length: float
    overlap: float
    native_share: float


class MixedIndex:
    """Translated and native vectors of the same rows, of which any part may be native.

    At most 1,000 rows are used, and as many queries.

    Args:
        translated: The translations (n, d) of rows that the map was not trained on.
        native: The native vectors (n, d) of the same rows.
        queries: Native vectors (m, d) of queries such as users ask. Default: None, the native rows, each of which
            searches all rows but itself. Short questions are unlike long documents, so the best length differs.
        similar: Similarities (n, n) of each native row with each translation, if several maps have translated the rows.
            Not used with `queries`. Default: None, the cosines of the rows.

    Raises:
        InputError: If the shapes do not fit, or with fewer than 20 rows or queries.
    """

    @exact_products()
    def __init__(
        self,
        translated: MatrixLike,
        native: MatrixLike,
        queries: MatrixLike | None = None,
        similar: MatrixLike | None = None,
    ):
        rows = [as_matrix(side, name) for side, name in ((translated, "translated"), (native, "native"))]
        if rows[0].shape != rows[1].shape or len(rows[0]) < LEAST_ROWS:
            raise InputError(
                f"`translated` and `native` must have the same shape and at least {LEAST_ROWS} rows; got "
                f"{tuple(rows[0].shape)} and {tuple(rows[1].shape)}."
            )
        T, Y = (unit(side[:MOST_ROWS].float()) for side in rows)
        Q = Y if queries is None else unit(as_matrix(queries, "queries")[:MOST_ROWS].float())
        if len(Q) < LEAST_ROWS or Q.shape[1] != Y.shape[1]:
            raise InputError(
                f"`queries` must have {Y.shape[1]} dimensions and at least {LEAST_ROWS} rows; got {tuple(Q.shape)}."
            )
        self.native, self.translated = Q @ Y.T, Q @ T.T
        if queries is None:
            if similar is not None:
                self.translated = as_matrix(similar, "similar").float()[: len(Y), : len(Y)].clone()
            for between in (self.native, self.translated):
                between.fill_diagonal_(-torch.inf)
        self.k = min(K, len(Y) - 1)
        self.wanted = nearest(self.native, self.k)

    def __len__(self) -> int:
        """The number of rows."""
        return self.native.shape[1]

    def results(self, is_native: Tensor, length: float = 1.0) -> Tensor:
        """Return the positions (n, k) of the nearest rows of each query, if the rows of a mask (n,) are native."""
        return self._merged(self._candidates(is_native), length)

    def _candidates(self, is_native: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what no length of translated rows changes: the k nearest native and the k nearest translated rows.

        Their positions (n, 2 k), ascending, similarities (n, 2 k), and which are translated (n, 2 k).
        """
        parts = self.native.masked_fill(~is_native, FAR), self.translated.masked_fill(is_native, FAR)
        lists = [nearest(similar, self.k) for similar in parts]
        positions, order = torch.cat(lists, dim=1).sort(dim=1, stable=True)
        similar = torch.cat([part.gather(1, listed) for part, listed in zip(parts, lists, strict=True)], dim=1)
        return positions, similar.gather(1, order), order >= self.k

    def _merged(self, candidates: tuple[Tensor, Tensor, Tensor], length: float) -> Tensor:
        """Return the positions (n, k) of the nearest of candidates, if translated rows have a length."""
        positions, similar, is_translated = candidates
        return positions.gather(1, nearest(torch.where(is_translated, length * similar, similar), self.k))

    def shares_found(self, is_native: Tensor, length: float = 1.0) -> Tensor:
        """Return the share (n,) of each query's nearest rows in a native index that a search finds."""
        return share_contained(self.wanted, self.results(is_native, length))

    def random(self, share: float, seed: int) -> Tensor:
        """Return a mask (n,) of this share of the rows, drawn at random."""
        order = np.random.default_rng(seed).permutation(len(self))
        return torch.from_numpy(np.isin(np.arange(len(self)), order[: round(share * len(self))]))

    def score(self, share: float, length: float, chosen: Sequence[Tensor] | None = None) -> MixedScore:
        """Score a share of native rows: the masks `chosen`, by default some random draws."""
        masks = [self.random(share, seed) for seed in range(DRAWS)] if chosen is None else chosen
        results = [self.results(mask, length) for mask in masks]
        overlaps = [float(share_contained(self.wanted, listed).mean()) for listed in results]
        shares = [float(mask[listed].double().mean()) for mask, listed in zip(masks, results, strict=True)]
        return MixedScore(share, length, float(np.mean(overlaps)), float(np.mean(shares)))

    def best_length(self) -> float:
        """Return the length of translated rows that finds most of the five nearest rows if a random half is native.

        They are five because these rows are a sample: its ten nearest rows are farther than those of the whole table,
        and the best length depends on how near they are. It is 1 unless the best of 41 lengths from 0.8 to 1.2 finds
        more by at least one standard error of the mean difference over the queries. One length serves every share of
        native rows.
        """
        draws = [self._candidates(self.random(0.5, seed)) for seed in range(DRAWS)]
        wanted = self.wanted[:, :FEW]

        def shares_found(length: float) -> Tensor:
            return torch.stack([share_contained(wanted, self._merged(one, length)[:, :FEW]) for one in draws]).mean(0)

        shares = {a: shares_found(a) for a in LENGTHS}
        best = max(LENGTHS, key=lambda a: (round(float(shares[a].mean()), 9), -abs(a - 1)))
        gain = shares[best] - shares[1.0]
        return best if float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5 else 1.0
