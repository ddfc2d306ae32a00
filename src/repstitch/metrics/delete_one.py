"""The standard error of a mean score of rows that are also each other's neighbours, by leaving out one row at a time.

If row j of a pool is left out, its own query is gone, and every list that contains j gains its next entry. So the mean
without row j is exact, without a new search, if lists are kept one entry longer than they are scored. The variance of
these n means (the jackknife, Efron and Stein 1981, "The Jackknife Estimate of Variance") is too large here: the effect
of a pair of a query i and a row j of the pool is counted once for i and once for j. The excess is the variance of such
pair effects, which is estimated from the changes themselves and subtracted once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WIDTH = 2.1  # standard errors in half a 95 % interval: more than 1.96, because the variance is itself an estimate
LEVEL = 0.95
ROUNDING = 1e-12
ROWS = 2**16  # lists that are compared in one call
NONE_OF_N = 3.0  # if none of n rows differs, less than 3 / n of all rows do, at 95 % (Hanley and Lippman-Hand 1983)


@dataclass(frozen=True, eq=False)
class RowScores:
    """The score (n,) of each query of a pool, and the `changes` (n, m) of query i's score if row j is left out.

    Row i < n of the pool is that of query i; further rows have no query. `changes` is None if the rows that are
    searched are fixed. All scores are between `lowest` and `highest`. `hits` is True if each score is 0 or 1.
    """

    values: np.ndarray
    changes: "csr_array | None" = None
    lowest: float = 0.0
    highest: float = 1.0
    hits: bool = False

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    def minus(self, other: "RowScores") -> "RowScores":
        """Return the difference of two scores of the same queries."""
        changes = _combine(self.changes, other.changes, -1.0)
        bounds = self.lowest - other.highest, self.highest - other.lowest
        return RowScores(self.values - other.values, changes, *bounds)

    def averaged(self, other: "RowScores") -> "RowScores":
        """Return the mean of two scores of the same queries; the rows of the smaller pool come first in the other."""
        parts = [scores.changes for scores in (self, other) if scores.changes is not None]
        width = max((cast(tuple[int, int], part.shape)[1] for part in parts), default=0)
        changes = [None if scores.changes is None else _widened(scores.changes, width) for scores in (self, other)]
        total = _combine(changes[0], changes[1], 1.0)
        bounds = (self.lowest + other.lowest) / 2, (self.highest + other.highest) / 2
        return RowScores((self.values + other.values) / 2, None if total is None else total * 0.5, *bounds)

    def over(self, other: "RowScores") -> "Ratio":
        """Return the ratio of two mean scores of the same queries. The mean of `other` must be above 0."""
        return Ratio(self, other)

    def means_without(self) -> np.ndarray:
        """Return the mean score (m,) without each row."""
        n, total = len(self.values), self.values.sum()
        if self.changes is None:
            return (total - self.values) / (n - 1)
        sums = total + np.asarray(self.changes.sum(axis=0)).ravel()
        sums[:n] -= self.values
        return sums / np.where(np.arange(len(sums)) < n, n - 1, n)

    def variance(self) -> float:
        """Return the variance of the mean over pools of m rows with n queries."""
        n = len(self.values)
        over_queries = float(self.values.var(ddof=1)) / n
        if self.changes is None:
            return over_queries
        without = self.means_without()
        groups = [rows for rows in (without[:n], without[n:]) if len(rows)]
        jackknife = sum(float(rows.var()) * (len(rows) - 1) for rows in groups)
        return max(jackknife - self._pair_effects(), over_queries)

    def as_independent(self) -> np.ndarray:
        """Return values (n,) with the same mean whose variance, divided by n, is that of the mean.

        They can be resampled as if they were independent. These are the jackknife's pseudo-values, drawn together.
        """
        n, mean = len(self.values), self.mean
        without = self.means_without()[:n]
        deviations = without.mean() - without
        spread = float(deviations.var(ddof=1))
        return mean + deviations * ((self.variance() * n / spread) ** 0.5 if spread > 0 else 0.0)

    def _pair_effects(self) -> float:
        """Return the variance of the mean that is due to pairs of a query and another row.

        A change counts from its mean over the rows that are left out, because leaving out any row moves lists up.
        """
        assert self.changes is not None
        of_query, of_row = (np.asarray(self.changes.sum(axis=axis)).ravel() for axis in (1, 0))
        n, m = len(of_query), len(of_row)
        expected = of_query / (m - 1)
        squares = self.changes.multiply(self.changes).sum() - (m - 1) * (expected**2).sum()
        both = self.changes[:, :n]  # rows that have a query themselves
        products = both.multiply(both.T).sum() - 2 * expected @ of_row[:n]
        products += expected.sum() ** 2 - (expected**2).sum()
        return float(squares + products) / n**2

    def interval(self) -> list[float]:
        """Return [low, high], a 95 % interval of the mean. Its width is 0 only if `lowest` is `highest`.

        Scores from 0 to 1 have Wilson's interval (1927, "Probable Inference") with p (1 − p) / variance in place of
        the number of queries.
        """
        n, mean = len(self.values), self.mean
        if np.ptp(self.values) <= ROUNDING:
            return interval_of_constant(mean, n, self.lowest, self.highest)
        variance, width = self.variance(), _quantile(n)
        if (self.lowest, self.highest) == (0.0, 1.0):
            effective = mean * (1 - mean) / variance
            return _wilson(mean, min(effective, n) if self.hits else effective, width)
        half = width * variance**0.5
        return [max(self.lowest, mean - half), min(self.highest, mean + half)]


@dataclass(frozen=True, eq=False)
class Ratio:
    """The ratio of two mean scores of the same queries, of which the lower one is above 0."""

    above: RowScores
    below: RowScores

    @property
    def mean(self) -> float:
        return self.above.mean / self.below.mean

    def interval(self) -> list[float]:
        """Return a 95 % interval: the ratios r for which the mean of `above` − r · `below` may be 0.

        If the mean of `below` may be 0, it begins at 0 and ends at the largest possible mean of `above` divided by the
        mean of `below`. Fieller 1954, "Some Problems in Interval Estimation".
        """
        n, above, below = len(self.above.values), self.above.mean, self.below.mean
        if self.below.lowest == self.below.highest:
            return [end / below for end in self.above.interval()]
        highest = max(self.mean, self.above.highest / below)
        if np.ptp(self.above.values * below - self.below.values * above) <= ROUNDING:
            # Queries that `below` scores 0 say nothing of the ratio.
            telling = self.below.values.sum() ** 2 / (self.below.values**2).sum()
            return interval_of_constant(self.mean, telling, 0.0, highest)
        of_above, of_below = self.above.variance(), self.below.variance()
        common = (of_above + of_below - self.above.minus(self.below).variance()) / 2
        # above² − 2 r above below + r² below² = q² (of_above − 2 r common + r² of_below)
        squared = _quantile(n) ** 2
        first, half = below**2 - squared * of_below, above * below - squared * common
        root = max(half**2 - first * (above**2 - squared * of_above), 0.0) ** 0.5
        if first <= 0:
            return [0.0, highest]
        return [max(0.0, (half - root) / first), min(highest, (half + root) / first)]


def _quantile(n: int) -> float:
    """Return half the width of a 95 % interval in standard errors, estimated from n rows."""
    from scipy.special import stdtrit

    return max(WIDTH, float(stdtrit(n - 1, (1 + LEVEL) / 2)))


def interval_of_constant(score: float, n: float, lowest: float = 0.0, highest: float = 1.0) -> list[float]:
    """Return a 95 % interval of a mean over n rows that all have the same score, between `lowest` and `highest`.

    Nothing is known of the spread, but less than 3 / n of all rows can differ.
    """
    share = min(1.0, NONE_OF_N / n)
    return [score - share * (score - lowest), score + share * (highest - score)]


def certain(score: float, n: int) -> RowScores:
    """Return n equal scores that are known by definition: their interval is the score itself."""
    return RowScores(np.full(n, score), None, score, score)


def _widened(changes: "csr_array", width: int) -> "csr_array":
    """Return the matrix (n, m) as (n, width), with zeros in the further columns."""
    from scipy.sparse import csr_array

    rows = cast(tuple[int, int], changes.shape)[0]
    return csr_array((changes.data, changes.indices, changes.indptr), shape=(rows, width))


def _combine(first: "csr_array | None", second: "csr_array | None", weight: float) -> "csr_array | None":
    if second is None:
        return first
    return second * weight if first is None else first + second * weight


def _wilson(share: float, n: float, width: float) -> list[float]:
    centre = (share + width**2 / (2 * n)) / (1 + width**2 / n)
    half = width / (1 + width**2 / n) * (share * (1 - share) / n + width**2 / (4 * n**2)) ** 0.5
    return [max(0.0, centre - half), min(1.0, centre + half)]


def share_of_neighbours(true: Tensor, k: int, lists: Tensor, m: int, pool: int | None = None) -> RowScores:
    """Return the share of each row's first k `true` neighbours that its first m entries of `lists` contain.

    Both are (n, depth) positions of other rows, nearest first, and are one entry longer than k or m if there are as
    many other rows. If the lists contain all other rows, the share is 1 by definition. `pool` is the number of rows
    that are searched, n by default; the first n are those of the queries.
    """
    n, pool = len(true), pool or len(true)
    if m >= pool - 1:
        return certain(1.0, n)
    wanted, next_wanted = _split(true, k)
    results, next_result = _split(lists, m)
    same = wanted[:, :, None] == results[:, None, :]
    is_result, is_wanted = same.any(2), same.any(1)
    # If a row of a list is left out, the next row of the list moves up. It counts if the other list contains it.
    wanted_counts = (next_wanted[:, None] == results).any(1)
    result_counts = (next_result[:, None] == wanted).any(1)
    both = wanted_counts.double() + result_counts + ((next_wanted == next_result) & (next_wanted >= 0)) - 1
    # A wanted row is lost if it is a result; then both lists move up. A result that is not wanted costs nothing.
    change = torch.cat(
        [torch.where(is_result, both[:, None], wanted_counts[:, None]), result_counts[:, None] & ~is_wanted], 1
    )
    return RowScores(is_result.double().mean(1).numpy(), _changes(torch.cat([wanted, results], 1), change / k, pool))


def _split(lists: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the first k entries (n, k) and the next one (n,), which is −1 if the lists end there."""
    following = lists[:, k] if lists.shape[1] > k else lists.new_full((len(lists),), -1)
    return lists[:, :k], following


def _changes(rows: Tensor, change: Tensor, pool: int) -> "csr_array":
    """Return the sparse matrix (n, pool) with `change` (n, e) at the positions `rows` (n, e)."""
    from scipy.sparse import csr_array

    query, entry = change.nonzero(as_tuple=True)
    places = (query.numpy(), rows[query, entry].numpy())
    return csr_array((change[query, entry].double().numpy(), places), shape=(len(rows), pool))


def reciprocal_ranks(ranks: Tensor, ahead: Tensor, pool: int | None = None) -> RowScores:
    """Return 1 / rank of each query's counterpart. See `hits` for the arguments."""
    # If a row ahead is left out, the counterpart moves up by one. Rows beyond the lists would change little.
    gain = 1 / (ranks - 1).clamp(min=1).double() - 1 / ranks.double()
    return _of_ranks(1 / ranks.double(), ranks, ahead, gain, pool)


def hits(ranks: Tensor, ahead: Tensor, r: int, pool: int | None = None) -> RowScores:
    """Return 1 for each query whose counterpart is among its first r results, else 0.

    `ranks` (n,) are from 1, and the rows ahead of a counterpart are the first rank − 1 entries of `ahead` (n, depth).
    `pool` is as in `share_of_neighbours`.
    """
    if r >= (pool or len(ranks)):
        return certain(1.0, len(ranks))
    scores = _of_ranks((ranks <= r).double(), ranks, ahead, (ranks == r + 1).double(), pool)
    return RowScores(scores.values, scores.changes, hits=True)


def _of_ranks(values: Tensor, ranks: Tensor, ahead: Tensor, gain: Tensor, pool: int | None) -> RowScores:
    is_ahead = torch.arange(ahead.shape[1]) < (ranks - 1)[:, None]
    return RowScores(values.numpy(), _changes(ahead, is_ahead * gain[:, None], pool or len(ranks)))


def without_copies(lists: Tensor, copies: Tensor) -> Tensor:
    """Return the lists (n, depth) with copies of each row's counterpart, which do not count against it, at the end.

    `copies` (m,) has the same number for gallery rows that are equal. The counterpart of query i is gallery row i.
    """
    is_copy = copies[lists] == copies[: len(lists), None]
    return lists.gather(1, is_copy.long().argsort(dim=1, stable=True)) if bool(is_copy.any()) else lists


def compared_lists(compare_rows: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> RowScores:
    """Return the comparison of each row's two lists, which are (n, k + 1) with the next entry last.

    `compare_rows` takes two matrices (r, k) and returns scores (r,) from 0 to 1.
    """
    n, k = len(first), first.shape[1] - 1
    values = compare_rows(first[:, :k], second[:, :k])
    entries = torch.cat([first[:, :k], second[:, :k]], 1)
    repeated = torch.cat([first.new_zeros(n, k, dtype=torch.bool), _contains(first[:, :k], second[:, :k])], 1)
    parts = []
    for start in range(0, n, max(1, ROWS // (2 * k))):
        rows = slice(start, start + max(1, ROWS // (2 * k)))
        left_out = entries[rows].flatten()
        without = (_without(lists[rows].repeat_interleave(2 * k, 0), left_out) for lists in (first, second))
        parts.append(compare_rows(*without).unflatten(0, (-1, 2 * k)) - values[rows, None])
    change = torch.where(repeated, 0.0, torch.cat(parts))
    return RowScores(values.double().numpy(), _changes(entries, change, n))


def _contains(lists: Tensor, entries: Tensor) -> Tensor:
    """Return whether each of the `entries` (n, e) is in the same row of `lists` (n, m)."""
    return (entries[:, :, None] == lists[:, None, :]).any(2)


def _without(lists: Tensor, left_out: Tensor) -> Tensor:
    """Return the lists (r, k) that are left of lists (r, k + 1) without one row each; without the last by default."""
    is_left_out = lists == left_out[:, None]
    is_left_out[:, -1] = ~is_left_out[:, :-1].any(1)
    return lists[~is_left_out].unflatten(0, (len(lists), -1))


def closed_cycles(in_x: Tensor, in_y: Tensor) -> RowScores:
    """Return 1 for each row that is in the `in_x` list of one of its `in_y` neighbours, else 0.

    Both are (n, k + 1) with the next entry last. A row m "closes" row i if i is in the first k entries of m's list. If
    another of these entries is left out and i comes next, m closes i as well.
    """
    n, k = len(in_x), in_x.shape[1] - 1
    rows = torch.arange(n)
    closes = (in_x[in_y, :k] == rows[:, None, None]).any(2)  # (n, k + 1), also for the next y neighbour
    comes_next = in_x[in_y, k] == rows[:, None]
    several = closes[:, :k].sum(1)
    opened, closed = several == 1, several == 0
    # Row i is closed by a single row m. Without m, the next y neighbour closes i, or a row whose list contains m.
    single = in_y[rows, closes[:, :k].long().argmax(1)]
    has_single = (in_x[in_y, :k] == single[:, None, None]).any(2)
    rescued = closes[:, k] | (comes_next & has_single).any(1)
    # Row i is not closed. It is without an entry of the list of a row at which it comes next, or without any of its
    # neighbours if the next one closes it, or comes next to closing it.
    by_entry = (closed[:, None] & comes_next[:, :k])[:, :, None].expand(-1, -1, k)
    next_has = (in_x[in_y[:, k], :k][:, None, :] == in_y[:, :k, None]).any(2)
    by_neighbour = closed[:, None] & (closes[:, k:] | (comes_next[:, k:] & next_has))
    entries = torch.cat([single[:, None], in_x[in_y[:, :k], :k].flatten(1), in_y[:, :k]], 1)
    change = torch.cat([-(opened & ~rescued).double()[:, None], by_entry.flatten(1).double(), by_neighbour.double()], 1)
    changes = _changes(entries, change, n)
    changes.data = changes.data.clip(-1, 1)  # a row that closes i in several ways closes it once
    return RowScores((several > 0).double().numpy(), changes, hits=True)
