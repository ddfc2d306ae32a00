"""Which rows to embed anew, and how lists of two indexes are merged."""

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.mixing.merging import OFFSETS, best_offset, merge_results
from repstitch.mixing.reembedding import choose_rows, density


def clumps(n_dense: int = 150, n_loose: int = 50) -> np.ndarray:
    dense = gaussian(1, 10, 1) + 0.05 * gaussian(n_dense, 10, 2)
    return np.concatenate([dense, gaussian(n_loose, 10, 3)]).astype(np.float32)


def test_density_is_the_mean_cosine_to_the_nearest_other_rows():
    rows = clumps()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    expected = -np.sort(-similar, axis=1)[:, :7].mean(axis=1)
    np.testing.assert_allclose(density(rows, k=7).numpy(), expected, atol=1e-5)


def test_a_sample_of_the_rows_gives_nearly_the_same_order():
    rows = clumps(600, 400)
    whole, sampled = density(rows), density(rows, rows[::4])
    chosen = [set(choose_rows(values, 0.3)) for values in (whole, sampled)]
    assert len(chosen[0] & chosen[1]) > 0.7 * 300
    assert chosen[1] <= set(range(600))


def test_rows_without_a_vector_are_chosen_last():
    rows = clumps()
    rows[:10] = np.nan
    values = density(rows)
    assert torch.isnan(values[:10]).all()
    assert set(choose_rows(values, 0.95)) == set(range(10, 200))


def test_the_rows_of_the_highest_values_are_chosen_and_ties_are_broken_at_random():
    values = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2])
    assert choose_rows(values, 0.4).tolist() == [1, 3]
    assert choose_rows(values, 0.6).tolist() == [1, 2, 3]
    ties = [tuple(choose_rows(torch.zeros(20), 0.25, seed)) for seed in range(5)]
    assert len(set(ties)) == 5
    assert all(len(rows) == 5 for rows in ties)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_lists_on_two_scales_are_merged_as_one_list_on_one_scale_would_be():
    """New similarities that are a scale and an offset of the old ones change nothing."""
    similar = -np.sort(-np.random.default_rng(0).random(200))
    ids = [f"d{i}" for i in range(200)]
    old = [(ids[i], float(similar[i])) for i in range(0, 200, 2)]
    new = [(ids[i], float(5 * similar[i] + 40)) for i in range(1, 200, 2)]
    merged = merge_results(old, new, k=20)
    assert len(merged) == 20
    assert len({key for key, _ in merged} & set(ids[:20])) >= 18
    assert [score for _, score in merged] == sorted((score for _, score in merged), reverse=True)


def test_an_offset_prefers_the_moved_rows():
    old, new = [("a", 0.9), ("b", 0.5)], [("c", 0.8), ("d", 0.2)]
    assert {key for key, _ in merge_results(old, new, k=2, offset=5.0)} == {"c", "d"}
    assert {key for key, _ in merge_results(old, new, k=2, offset=-5.0)} == {"a", "b"}


def test_an_id_in_both_lists_is_returned_once_and_short_lists_are_merged_too():
    assert [key for key, _ in merge_results([("a", 0.9), ("b", 0.1)], [("a", 0.5), ("c", 0.1)], k=9)].count("a") == 1
    assert merge_results([], [("a", 0.5)]) == [("a", 0.0)]
    assert merge_results([], []) == []


@pytest.mark.parametrize(
    ("old", "k", "message"),
    [
        ([("a", float("nan"))], 10, "must have a finite similarity for each id"),
        ([], 0, "`k` must be at least 1; got 0"),
    ],
)
def test_what_cannot_be_merged_is_refused(old, k, message):
    with pytest.raises(InputError, match=message):
        merge_results(old, [], k=k)


def test_the_best_offset_undoes_a_bias_between_the_lists():
    """If 100 rows of 400 are moved, both lists are standardised alike although the second is from fewer rows."""
    random = np.random.default_rng(0)
    similar = random.random((40, 400)) ** 3
    moved = np.arange(400) < 100

    def results(query: int, rows: np.ndarray) -> list[tuple[int, float]]:
        order = rows[np.argsort(-similar[query, rows])][:50]
        return [(int(row), float(similar[query, row])) for row in order]

    old = [results(query, np.flatnonzero(~moved)) for query in range(40)]
    new = [results(query, np.flatnonzero(moved)) for query in range(40)]
    wanted = [[key for key, _ in results(query, np.arange(400))][:10] for query in range(40)]
    offset = best_offset(old, new, wanted)
    assert offset in OFFSETS
    assert offset < 0  # the first results of 100 rows are worse than those of 300

    def found(at: float) -> float:
        merged = [merge_results(o, n, 10, at) for o, n in zip(old, new, strict=True)]
        return float(np.mean([len({key for key, _ in m} & set(w)) / 10 for m, w in zip(merged, wanted, strict=True)]))

    assert found(offset) > found(0.0)
    assert found(offset) == max(found(other) for other in OFFSETS)


@pytest.mark.parametrize("n_moved", [20, 100, 380])
def test_lists_of_parts_of_unlike_size_need_no_offset_if_the_share_moved_is_passed(n_moved):
    """Native similarities on one scale, so that the right results of the whole are those of highest similarity."""
    similar = np.random.default_rng(0).random((40, 400)) ** 3
    parts = np.split(np.arange(400), [n_moved])

    def overlap(moved: float) -> float:
        shares = []
        for row in similar:
            new, old = ([(i, float(row[i])) for i in part[np.argsort(-row[part])][:50]] for part in parts)
            merged = {key for key, _ in merge_results(old, new, 10, moved=moved)}
            shares.append(len(merged & set(np.argsort(-row)[:10].tolist())) / 10)
        return float(np.mean(shares))

    assert overlap(n_moved / 400) > overlap(0.5) + 0.05
    assert overlap(n_moved / 400) > 0.85


def test_the_offset_of_lists_that_need_none_is_0():
    lists = [[("a", 0.9), ("b", 0.1)]] * 3
    assert best_offset(lists, lists, [["a"]] * 3) == 0


def test_queries_without_all_three_lists_are_refused():
    with pytest.raises(InputError, match="must have a list for each query; got 1, 0 and 1"):
        best_offset([[("a", 1.0)]], [], [["a"]])


@pytest.mark.parametrize("moved", [0.0, 1.0, float("nan")])
def test_a_share_that_leaves_a_part_empty_is_refused(moved):
    with pytest.raises(InputError, match="`moved` must be between 0 and 1; got"):
        merge_results([("a", 1.0)], [("b", 1.0)], moved=moved)
    with pytest.raises(InputError, match="`moved` must be between 0 and 1; got"):
        best_offset([[("a", 1.0)]], [[("b", 1.0)]], [["a"]], moved)
