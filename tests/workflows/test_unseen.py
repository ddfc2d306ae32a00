"""Scores in folds: the two rows that are compared trained no map that compares them."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.spaces import gaussian, shared_latent

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import SHARES
from repstitch.errors import InputError
from repstitch.fit.closed_form import decompose, fit_closed
from repstitch.fit.recipe import recipe_for
from repstitch.fit.selection import select
from repstitch.metrics.moments import moments
from repstitch.metrics.neighbours import knn, unit
from repstitch.metrics.retrieval import search, search_similar
from repstitch.mixing.mixed_index import MixedIndex
from repstitch.spaces import Space
from repstitch.stitchers.held_out_rows import held_out_file, read_held_out
from repstitch.stitchers.stitcher import load
from repstitch.workflows import preparing
from repstitch.workflows.preparing import Division, PairColumns, prepare
from repstitch.workflows.training import state_problem, train
from repstitch.workflows.unseen import unseen_similarities

QUICK: dict[str, Any] = {"method": "ridge", "device": "cpu", "objective": "neighbours", "folds": 5}
N = 120


def rows_of(X: np.ndarray, name: str, group=None) -> Embeddings:
    ids = np.array([f"row {i}" for i in range(len(X))], dtype=object)
    return Embeddings(X, Space(name=name, dim=X.shape[1]), ids=ids, groups=group)


def prepared_pairs(own: list[str] | None = None, group=None, n_folds: int = 5):
    X, Y = shared_latent(N, rank=4, d_source=8, d_target=6, noise=0.3)
    division = Division(SHARES, 0, n_folds)
    sides = rows_of(X, "a", group), rows_of(Y, "b")
    columns = PairColumns(own=own)
    return prepare(*sides, columns=columns, division=division, drop_invalid=False, output_norm=None, device="cpu")


def solve(prepared):
    problem = state_problem(prepared, "neighbours", recipe_for("mlp", accelerator="cpu", seed=0))
    return problem, select(problem, "ridge")[0]


def test_spaces_that_have_nothing_in_common_are_scored_as_chance():
    """A map that has seen the target of a query draws similar rows to it, and the counterpart would come last."""
    X, Y = gaussian(N, 100, 1), gaussian(N, 100, 2)
    card = train(rows_of(X, "a"), rows_of(Y, "b"), **QUICK).scorecard
    for scores in card.uses.values():
        assert 0.38 * N < scores.median_rank < 0.62 * N
        assert scores.overlap.score == pytest.approx(10 / (N - 1), abs=0.025)


def test_the_chance_of_a_match_of_unrelated_spaces_is_that_of_a_random_search():
    chances = []
    for seed in range(0, 12, 3):
        stitcher = train(rows_of(gaussian(N, 100, seed), "a"), rows_of(gaussian(N, 100, seed + 1), "b"), **QUICK)
        confidence = stitcher.confidence(gaussian(50, 100, seed + 2))
        assert confidence.pool == N
        chances.append(float(np.mean(confidence.p_match)))
    assert np.mean(chances) == pytest.approx(10 / N, abs=0.02)


@pytest.mark.parametrize("own", [None, [f"row {i}" for i in range(0, N, 3)]])
def test_each_similarity_is_that_of_a_map_fitted_without_the_folds_of_both_rows(own):
    prepared = prepared_pairs(own=own)
    problem, chosen = solve(prepared)
    similar = unseen_similarities(prepared, chosen, problem)
    assert similar is not None
    assert prepared.proof_folds is not None
    proof_folds = torch.from_numpy(prepared.proof_folds)
    folds = torch.where(proof_folds < 0, proof_folds, proof_folds % 10)
    of_own = folds[folds >= 0]
    assert similar["corpus"].shape == (len(of_own), len(of_own))
    X, Y = prepared.X[folds >= 0], unit(prepared.Y[folds >= 0])
    if own is None:
        for i, j in ((0, 1), (5, 90), (33, 34)):
            rest = (folds != of_own[i]) & (folds != of_own[j])
            d = decompose(moments((prepared.X[rest], prepared.Y[rest])))
            map = fit_closed(d, "ridge", chosen.settings)
            assert float(similar["corpus"][i, j]) == pytest.approx(float(Y[i] @ unit(map(X[[j]]))[0]), abs=1e-4)
            assert float(similar["query"][i, j]) == pytest.approx(float(unit(map(X[[i]]))[0] @ Y[j]), abs=1e-4)
    torch.testing.assert_close(similar["corpus"].diagonal(), similar["query"].diagonal())
    assert bool((similar["corpus"].abs() <= 1 + 1e-5).all())


def test_too_few_folds_are_scored_with_one_left_out():
    group = np.array([f"g{i % 3}" for i in range(N)], dtype=object)
    prepared = prepared_pairs(group=group, n_folds=3)
    problem, chosen = solve(prepared)
    assert unseen_similarities(prepared, chosen, problem) is None


def test_at_most_so_many_pairs_in_folds_are_scored(monkeypatch):
    monkeypatch.setattr(preparing, "SCORED_IN_FOLDS", 50)
    X, Y = shared_latent(N, rank=4, d_source=8, d_target=6, noise=0.3)
    stitcher = train(rows_of(X, "a"), rows_of(Y, "b"), **QUICK)
    assert (stitcher.scorecard.n, stitcher.scorecard.pool) == (50, 50)
    assert stitcher.provenance["pairs"] == {"train": N}
    assert stitcher.held_out is not None
    assert len(stitcher.held_out.ids) == len(stitcher.held_out.vectors) == 50
    assert stitcher.held_out.similar is not None
    assert stitcher.held_out.similar.shape == (50, 50)


def test_a_search_by_similarities_is_the_search_by_rows():
    Q, G = torch.from_numpy(gaussian(60, 5, 1)), torch.from_numpy(gaussian(60, 5, 2))
    copies = torch.arange(60)
    ranks, neighbours = search(Q, G, 12, copies)
    again = search_similar(unit(Q) @ unit(G).T, 12, copies)
    assert torch.equal(ranks, again[0])
    assert torch.equal(neighbours, again[1])
    assert torch.equal(neighbours, knn(Q, G, 12, exclude_self=True))


def test_similarities_are_kept_with_the_held_out_rows_and_used_for_mixed_indexes(tmp_path):
    X, Y = shared_latent(N, rank=4, d_source=8, d_target=6, noise=0.3)
    stitcher = train(rows_of(X, "a"), rows_of(Y, "b"), **QUICK)
    folder = stitcher.save(tmp_path / "a-b")
    rows = read_held_out(folder, load(folder).version, 6)
    assert rows is not None
    assert rows.translated is not None
    assert rows.similar is not None
    assert stitcher.held_out is not None
    assert stitcher.held_out.similar is not None
    assert np.array_equal(rows.similar, stitcher.held_out.similar)
    of = {str(key): i for i, key in enumerate(rows.ids)}
    order = [of[f"row {i}"] for i in range(N)]
    overlap = stitcher.scorecard.corpus.overlap.score
    index = MixedIndex(rows.translated[order], rows.vectors[order], similar=rows.similar[order][:, order])
    assert index.score(0.0, 1.0).overlap == pytest.approx(overlap, abs=1e-6)
    assert MixedIndex(rows.translated, rows.vectors).score(0.0, 1.0).overlap != pytest.approx(overlap, abs=1e-6)
    table = pq.read_table(held_out_file(folder))
    wrong = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(3 * N, np.float32)), 3)
    at = table.column_names.index("similar")
    pq.write_table(table.set_column(at, "similar", wrong), held_out_file(folder))
    with pytest.raises(InputError, match="column similar must have a number for each row with a vector"):
        read_held_out(folder, load(folder).version, 6)
