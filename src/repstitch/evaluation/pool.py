# pyright: strict
"""The held-out pairs as a pool that is searched: by translations, by their references, and by controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.evaluation.use_scores import RECALLS
from repstitch.metrics.delete_one import RowScores, certain, hits, reciprocal_ranks, share_of_neighbours, without_copies
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import search, search_similar

K = 10
SHORTLIST = 100


@dataclass(frozen=True, eq=False)
class TranslatedPairs:
    """Normalised pairs and their translations, as float32 tensors.

    `source` is (n, d_source). `target`, `raw` and `translated` are (n, d_target); `raw` is the output of the map before
    the output normalisation. If several maps have translated the rows, `similar` has the similarities (n, n) of each
    query with each row of the gallery, by use; else they are the cosines of these rows.
    """

    source: Tensor
    target: Tensor
    raw: Tensor
    translated: Tensor
    similar: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"TranslatedPairs({len(self)} pairs, {self.source.shape[1]} -> {self.target.shape[1]})"

    def take(self, rows: np.ndarray) -> "TranslatedPairs":
        similar = None if self.similar is None else {use: s[rows][:, rows] for use, s in self.similar.items()}
        return TranslatedPairs(self.source[rows], self.target[rows], self.raw[rows], self.translated[rows], similar)


@dataclass(frozen=True, eq=False)
class Pool:
    """The pairs that are searched, and the nearest other rows of each row in each of the two spaces.

    A list has `depth` entries, and the next one if there is one: it moves up if a row is left out.
    """

    pairs: TranslatedPairs
    source_neighbours: Tensor
    target_neighbours: Tensor
    k: int
    depth: int

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def copies(self) -> Tensor:
        """One number per row (n,), the same for rows whose target rows are equal. Only these are copies."""
        return torch.unique(self.pairs.target, dim=0, return_inverse=True)[1]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    @property
    def native(self) -> Tensor:
        """The k nearest other rows of each target row."""
        return self.target_neighbours[:, : self.k]


class Search(NamedTuple):
    """The rank (n,) of each query's counterpart, and the nearest other rows of each query, None if all rows tie."""

    ranks: Tensor
    neighbours: Tensor | None


def pool_of(pairs: TranslatedPairs) -> Pool:
    """Return the pool of these pairs. Raises InputError if all target rows are equal."""
    if not bool((pairs.target != pairs.target[0]).any()):
        raise InputError(
            f"The {len(pairs)} held-out target rows are all equal, so nothing can be scored; check the target file."
        )
    others = len(pairs) - 1
    listed = min(SHORTLIST + 1, others)
    in_source, in_target = (knn(rows, rows, listed, exclude_self=True) for rows in (pairs.source, pairs.target))
    return Pool(pairs, in_source, in_target, min(K, others), min(SHORTLIST, others))


def search_pool(use: str, pool: Pool, rows: Tensor) -> Search:
    """Search with `rows` (n, d_target) in place of the translations.

    In query use they search the target rows, in corpus use the target rows search them.
    """
    target, listed = pool.pairs.target, pool.target_neighbours.shape[1]
    queries, gallery = (target, rows) if use == "corpus" else (rows, target)
    return Search(*search(queries, gallery, listed, pool.copies))


def search_all(use: str, pool: Pool, training_mean: Tensor, seed: int) -> dict[str, Search]:
    """Search with the translation, and with each control in place of the translation."""
    source, target, translated = pool.pairs.source, pool.pairs.target, pool.pairs.translated
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(target)))
    rows = {"translated": translated, "shuffled": translated[order]}
    if source.shape[1] == target.shape[1]:
        rows["naive"] = source
    searches = {name: search_pool(use, pool, searched) for name, searched in rows.items()}
    if pool.pairs.similar is not None:
        similar, listed = pool.pairs.similar[use], pool.target_neighbours.shape[1]
        searches["translated"] = Search(*search_similar(similar, listed, pool.copies))
    if use == "query" and bool(training_mean.any()):
        return searches | {"constant": search_pool(use, pool, training_mean[None])}
    # If all gallery rows are equal, every row ties with the counterpart, and ties count against the query.
    return searches | {"constant": Search(1 + len(target) - torch.bincount(pool.copies)[pool.copies], None)}


def scores_of_queries(translated: Search, pool: Pool) -> dict[str, RowScores]:
    """Return the retrieval scores of every query of a search with the translations."""
    assert translated.neighbours is not None
    ahead = without_copies(translated.neighbours, pool.copies)
    scores = {f"recall@{r}": hits(translated.ranks, ahead, r) for r in RECALLS}
    scores["mrr"] = reciprocal_ranks(translated.ranks, ahead)
    scores[f"overlap@{pool.k}"] = share_of_neighbours(pool.target_neighbours, pool.k, translated.neighbours, pool.k)
    return scores


def scores_with_references(
    use: str, searches: dict[str, Search], pool: Pool
) -> tuple[dict[str, dict[str, RowScores]], dict[str, float]]:
    """Return the shares of true neighbours that the translation and its references find, by measure; and chance.

    The true neighbours of a use are those that full re-embedding with the new model would find. In corpus use the new
    model is the target, so they are the target's own neighbours. In query use the new model is the source, so they are
    the source's own. Therefore full re-embedding (`ceiling`) scores 1, and keeping the old model (`keep_old`) scores
    the mutual_knn of the two spaces.

    The new model puts the true neighbours among the first m results of the old one in front of all others. So the
    overlap@k of these m `reranked` is the topk_in_m of `keep_old`.

    There are two measures. overlap@k is the share of the k true neighbours that are among the first k results.
    topk_in_m is the share that are among the first m results, the candidates for a second stage. m is 100, or the
    number of other rows in a smaller pool.
    """
    n, (true, old) = len(pool), (pool.target_neighbours, pool.source_neighbours)
    if use == "query":
        true, old = old, true
    results = {name: one.neighbours for name, one in searches.items()} | {"keep_old": old}
    reaches = {f"overlap@{pool.k}": pool.k, f"top{pool.k}_in_{pool.depth}": pool.depth}
    chance = {measure: reach / (n - 1) for measure, reach in reaches.items()}
    scores = {
        measure: {
            name: certain(chance[measure], n) if lists is None else share_of_neighbours(true, pool.k, lists, reach)
            for name, lists in results.items()
        }
        | {"ceiling": certain(1.0, n)}
        for measure, reach in reaches.items()
    }
    first, shortlist = scores.values()
    first["reranked"] = shortlist["reranked"] = shortlist["keep_old"]
    return scores, chance
