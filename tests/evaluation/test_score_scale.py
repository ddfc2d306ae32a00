"""Equivalents of the thresholds of an old model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, names, rotation, shared_latent

from repstitch.errors import InputError
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.relevance import SearchRows
from repstitch.evaluation.score_scale import fit_query_score_scale, fit_score_scale
from repstitch.evaluation.scorecard_parts import ScoreScale


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs_of(source: np.ndarray, target: np.ndarray, translated: np.ndarray) -> TranslatedPairs:
    rows = [torch.from_numpy(unit(side)) for side in (source, target, translated)]
    return TranslatedPairs(rows[0], rows[1], rows[2], rows[2])


def scale_of(pairs: TranslatedPairs, use: str = "corpus", folds=None) -> ScoreScale:
    values = fit_score_scale(pairs, use, folds)
    assert values is not None
    return ScoreScale.from_dict(values)


def noisy(n: int = 300, noise: float = 0.3, seed: int = 0) -> TranslatedPairs:
    """Pairs whose translations are noisy target rows, and whose target similarities are on another scale."""
    X, Y = shared_latent(n, rank=6, d_source=12, d_target=10, noise=0.2)
    return pairs_of(X, Y + 2, Y + 2 + noise * gaussian(n, 10, seed))


def hits(queries: torch.Tensor, rows: torch.Tensor, threshold: float, k: int) -> float:
    """Return the mean number of a query's first k results, without its own row, above a threshold."""
    similar = queries @ rows.T
    similar.fill_diagonal_(-2)
    return float((similar.topk(k, dim=1).values >= threshold).float().sum(1).mean())


@pytest.mark.parametrize("use", ["corpus", "query"])
def test_the_same_space_has_the_same_thresholds_and_the_same_items(use):
    rows = gaussian(200, 8)
    R = rotation(8)
    scale = scale_of(pairs_of(rows @ R, rows, rows), use)
    for threshold in np.linspace(scale.old[0], scale.old[-1], 7):
        for equivalent in scale.equivalents(float(threshold)).values():
            assert float(equivalent.similarity) == pytest.approx(threshold, abs=0.01)
            assert equivalent.same_items == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("use", ["corpus", "query"])
def test_an_equivalent_lets_as_many_results_through_as_the_old_threshold(use):
    pairs = noisy()
    scale = scale_of(pairs, use)
    old = pairs.source if use == "corpus" else pairs.target
    searches = {"native": (pairs.target, pairs.target), "translated": (pairs.target, pairs.translated)}
    if use == "query":
        searches = {"translated": (pairs.translated, pairs.target)}
    assert list(scale.new) == list(searches)
    first = (old @ old.T).fill_diagonal_(-2).topk(100, dim=1).values
    for threshold in np.quantile(first, [0.1, 0.4, 0.7, 0.95, 0.99, 0.997]):
        before = hits(old, old, threshold, 100)
        for kind, equivalent in scale.equivalents(float(threshold)).items():
            assert hits(*searches[kind], float(equivalent.similarity), 100) == pytest.approx(before, rel=0.06)


def test_equivalents_ascend_and_are_inside_their_intervals():
    scale = scale_of(noisy())
    for lists in scale.new.values():
        assert lists["similarity"] == sorted(lists["similarity"])
        for low, similarity, high in zip(lists["low"], lists["similarity"], lists["high"], strict=True):
            assert low <= similarity <= high
    middle = scale.equivalents(float(np.median(scale.old)))["translated"].similarity.interval
    assert middle is not None
    assert middle[0] < middle[1]


def test_fewer_queries_widen_the_intervals():
    widths = []
    for n in (60, 600):
        scale = scale_of(noisy(n))
        interval = scale.equivalents(float(np.median(scale.old)))["native"].similarity.interval
        assert interval is not None
        widths.append(interval[1] - interval[0])
    assert widths[0] > 1.5 * widths[1]


def test_a_worse_translation_lets_fewer_of_the_same_items_through():
    shares = []
    for noise in (0.05, 0.5, 3.0):
        scale = scale_of(noisy(noise=noise))
        shares.append(scale.equivalents(float(np.median(scale.old)))["translated"].same_items)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2] + 0.1


def test_with_folds_each_query_searches_its_own_fold_only():
    pairs = noisy(200)
    folds = np.arange(200) % 4
    scale = scale_of(pairs, folds=folds)
    assert (scale.queries, scale.results) == (200, 100)
    firsts = []
    for fold in range(4):
        rows = pairs.source[torch.from_numpy(folds == fold)]
        firsts.append((rows @ rows.T).fill_diagonal_(-2).topk(25, dim=1).values)  # 100 of 199 are 25 of 49
    old = torch.cat(firsts)
    assert (scale.old[0], scale.old[-1]) == pytest.approx((float(old.min()), float(old.max())), abs=1e-4)


def test_a_threshold_outside_the_fitted_range_has_no_equivalent():
    scale = scale_of(noisy())
    for threshold in (scale.old[0] - 0.01, scale.old[-1] + 0.01, float("nan")):
        with pytest.raises(InputError, match=r"the range of the first 100 results of 300 held-out rows; got"):
            scale.equivalents(threshold)


def test_too_few_pairs_have_no_scale():
    assert fit_score_scale(noisy(39), "corpus") is None
    assert fit_score_scale(noisy(40), "corpus") is not None


@pytest.mark.parametrize("damage", [{"old": [1.0, 0.5]}, {"old": [0.5]}, {"new": {}}])
def test_a_scale_whose_lists_do_not_fit_is_refused(damage):
    values = fit_score_scale(noisy(60), "corpus")
    assert values is not None
    with pytest.raises(
        InputError, match="'old' and 'new' of a ScoreScale must be lists of one length, and 'old' must ascend"
    ):
        ScoreScale.from_dict(values | damage)


# --- real queries -----------------------------------------------------------------------------------------------------


def questions(n: int = 80, n_documents: int = 300, noise: float = 0.3) -> tuple[SearchRows, SearchRows]:
    """Return short queries, which are far from all documents in the old space and near to all in the new one."""
    D, Q = gaussian(n_documents, 8, 1), gaussian(n, 8, 2)
    away, near = (3 * direction for direction in np.eye(8, dtype=np.float32)[:2])
    made = []
    for rows, at, kind in ((Q, 1, "q"), (D, -1, "d")):
        old, new = rows @ rotation(8) + at * away, rows + near
        translated = new + noise * gaussian(len(rows), 8, 3)
        tensors = (torch.from_numpy(unit(side)) for side in (old, new, translated))
        made.append(SearchRows(names(len(rows), kind), *tensors, seen=np.zeros(len(rows), dtype=bool)))
    return made[0], made[1]


def query_scale(queries: SearchRows, documents: SearchRows, use: str = "corpus") -> ScoreScale:
    values = fit_query_score_scale(queries, documents, use)
    assert values is not None
    return ScoreScale.from_dict(values)


def above(queries: torch.Tensor, documents: torch.Tensor, threshold: float) -> float:
    """Return the mean number of a query's first 100 documents above a threshold."""
    return float(((queries @ documents.T).topk(100, dim=1).values >= threshold).float().sum(1).mean())


@pytest.mark.parametrize("use", ["corpus", "query"])
def test_an_equivalent_lets_as_many_documents_of_real_queries_through_and_that_of_rows_does_not(use):
    queries, documents = questions()
    scale = query_scale(queries, documents, use)
    assert (scale.queried_by, scale.queries, scale.results) == ("queries", 80, 100)
    old, new = (queries.source, documents.source), {"native": (queries.target, documents.target)}
    new["translated"] = (queries.target, documents.translated)
    if use == "query":
        old, new = (queries.target, documents.target), {"translated": (queries.translated, documents.target)}
    assert list(scale.new) == list(new)
    first = (old[0] @ old[1].T).topk(100, dim=1).values
    for threshold in np.quantile(first, [0.1, 0.5, 0.9, 0.99]):
        before = above(*old, threshold)
        for kind, equivalent in scale.equivalents(float(threshold)).items():
            assert above(*new[kind], float(equivalent.similarity)) == pytest.approx(before, rel=0.06)
    if use == "corpus":
        pairs = TranslatedPairs(documents.source, documents.target, documents.translated, documents.translated)
        by_rows = scale_of(pairs)
        assert by_rows.queried_by == "rows"
        threshold = max(by_rows.old[0], float(first.quantile(0.9)))
        misled = float(by_rows.equivalents(threshold)["native"].similarity)
        assert above(*new["native"], misled) > 3 * above(*old, threshold)


def test_the_same_items_of_queries_are_those_above_both_thresholds():
    queries, documents = questions()
    scale = query_scale(queries, documents)
    old, new = queries.source @ documents.source.T, queries.target @ documents.translated.T
    threshold = float(old.topk(100, dim=1).values.quantile(0.8))
    equivalent = scale.equivalents(threshold)["translated"]
    results = torch.zeros_like(old).scatter(1, old.topk(100, dim=1).indices, 1.0) > 0
    results &= old >= threshold
    assert equivalent.same_items == pytest.approx(
        float((new >= float(equivalent.similarity))[results].float().mean()), abs=0.02
    )


def test_queries_search_only_documents_that_did_not_train_if_these_are_at_least_100():
    queries, documents = questions()
    seen = np.arange(300) >= 100
    memorised = documents.translated.clone()
    memorised[torch.from_numpy(seen)] = documents.target[torch.from_numpy(seen)]
    documents = replace(documents, seen=seen, translated=memorised)
    alone = query_scale(queries, documents.take(np.flatnonzero(~seen)))
    assert query_scale(queries, documents) == alone
    most = replace(documents, seen=np.arange(300) >= 99)
    assert query_scale(queries, most) == query_scale(queries, replace(documents, seen=np.zeros(300, dtype=bool)))


def test_queries_that_trained_are_left_out_and_40_others_are_needed():
    queries, documents = questions()
    others = replace(queries, seen=np.arange(80) >= 40)
    assert query_scale(others, documents) == query_scale(queries.take(np.arange(40)), documents)
    assert fit_query_score_scale(replace(queries, seen=np.arange(80) >= 39), documents, "corpus") is None


def test_intervals_contain_the_threshold_that_holds_for_all_queries():
    queries, documents = questions(4_000)
    threshold = float((queries.source @ documents.source.T).topk(100, dim=1).values.quantile(0.9))
    before = above(queries.source, documents.source, threshold)
    hits: list[float] = []
    covered = 0
    for draw in range(25):
        scale = query_scale(queries.take(np.arange(draw * 160, (draw + 1) * 160)), documents)
        equivalent = scale.equivalents(threshold)["translated"].similarity
        assert equivalent.interval is not None
        fewest, most = (above(queries.target, documents.translated, end) for end in reversed(equivalent.interval))
        covered += fewest <= before <= most
        hits.append(above(queries.target, documents.translated, float(equivalent)))
    assert covered >= 21
    assert np.mean(hits) == pytest.approx(before, rel=0.05)


def test_a_scale_does_not_depend_on_the_batches_that_are_searched(monkeypatch):
    queries, documents = questions()
    pairs = noisy()
    of_queries, of_rows = query_scale(queries, documents), scale_of(pairs)
    monkeypatch.setattr("repstitch.evaluation.score_scale.CELLS", 7 * 300)
    for whole, batched in ((of_queries, query_scale(queries, documents)), (of_rows, scale_of(pairs))):
        assert batched.old == pytest.approx(whole.old, abs=1e-4)
        assert batched.new["translated"]["similarity"] == pytest.approx(whole.new["translated"]["similarity"], abs=1e-3)
