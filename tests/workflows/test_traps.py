"""Known pitfalls of measuring alignment, each compared with the library's result on the same rows."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.definitions import neighbour_mask, unbiased_hsic, unit
from helpers.spaces import cone, gaussian, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.null import random_orders, relabel


def tensors(*sides) -> Any:
    return [torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in sides]


def score(name: str, X, Y, k: int = 10) -> float:
    return METRICS[name](*tensors(X, Y), k=k)


def null(name: str, spaces, pairs, draws: int = 99, k: int = 10, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the library's scores (pairs,) and null (pairs, draws); a column is one permutation for all pairs."""
    metric = METRICS[name]
    prepared = [metric.prepare(space, k) for space in tensors(*spaces)]
    random = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(spaces[0]), generator=random) for _ in range(draws)])
    observed = [metric.compare(prepared[i], prepared[j]) for i, j in pairs]
    return np.array(observed), np.asarray(metric.draws(prepared, pairs, orders))


def standard_error(name: str, X, Y, k: int = 10) -> float:
    """Return the library's standard error of a score with fixed neighbour graphs."""
    metric = METRICS[name]
    influence = np.asarray(metric.influence(*(metric.prepare(space, k) for space in tensors(X, Y))))
    return float(influence.std() / np.sqrt(len(influence)))


def p_value(observed, draws: np.ndarray) -> np.ndarray:
    """Return (1 + number of draws that reach the score) / (1 + number of draws), over the last axis."""
    return (1 + (draws >= np.asarray(observed)[..., None]).sum(axis=-1)) / (1 + draws.shape[-1])


def naive_mutual_knn(X, Y, k: int = 10) -> float:
    """Sort all similarities and count shared neighbours, without any check of the rows."""
    lists = []
    for side in (X, Y):
        similar = unit(side) @ unit(side).T
        np.fill_diagonal(similar, -1e8)
        lists.append(np.argsort(-similar, axis=1, kind="stable")[:, :k])
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*lists, strict=True)]))


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "cosine", "low", "high"), [(0.5, 0.8, 0.97, 0.995), (0.1, 0.99, 0.1, 0.25)])
def test_an_epsilon_in_the_denominator_makes_a_narrow_cone_unlike_itself(spread, cosine, low, high):
    X = cone(200, 512, spread)
    K = X.astype(np.float64) @ X.T
    hsic = unbiased_hsic(K, K)
    assert np.mean(K) == pytest.approx(cosine, abs=0.01)
    assert low < hsic / (hsic + 1e-6) < high
    assert score("cka_unbiased", X, X) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("d", "at_least"), [(100, 0.46), (200, 0.64), (400, 0.78)])
def test_biased_cka_is_high_for_independent_spaces_with_as_many_dimensions_as_rows(d, at_least):
    X, Y = unrelated(100, d, d)
    assert at_least < score("cka", X, Y) < 0.82
    assert abs(score("cka_unbiased", X, Y)) < 0.05


def test_constant_spaces_look_perfectly_aligned_unless_they_are_refused():
    X, Y = np.ones((80, 4)), np.full((80, 6), 2.0)
    assert naive_mutual_knn(X, Y) == 1
    with pytest.raises(InputError, match="different directions"):
        score("mutual_knn", X, Y)


def test_repeated_rows_make_unrelated_spaces_look_aligned_unless_they_are_refused():
    X, Y = (side[np.arange(400) % 50] for side in unrelated(50, 8, 6))
    assert 0.68 < naive_mutual_knn(X, Y) < 0.8
    with pytest.raises(InputError, match="different directions"):
        score("mutual_knn", X, Y)


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4])
def test_repeated_rows_are_detected_whatever_their_length_and_noise(noise):
    lengths = np.random.default_rng(0).uniform(0.1, 9, (512, 1))
    X, Y = (side[np.arange(512) % 64] * lengths for side in unrelated(64, 32, 24))
    X, Y = (side * (1 + noise * gaussian(*side.shape, 7)) for side in (X, Y))
    assert naive_mutual_knn(X, Y) > 0.6
    with pytest.raises(InputError, match="different directions"):
        score("mutual_knn", X, Y)


def test_collapsed_rows_are_refused_whatever_their_length():
    X, Y = (np.random.default_rng(d).uniform(0.1, 9, (200, 1)) * np.ones((1, d)) for d in (16, 12))
    with pytest.raises(InputError, match="only 1 different directions"):
        score("mutual_knn", X, Y)
    flat = X / np.linalg.norm(X, axis=1, keepdims=True)
    with pytest.raises(InputError, match="all its rows are the same up to rounding"):
        score("cka_unbiased", flat, Y)


def several_hot(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows of zeros and a few ones, so that very many pairs of rows are equally near."""
    random = np.random.default_rng(seed)
    X = np.zeros((n, d))
    for row in X:
        row[random.choice(d, random.integers(3, 11), replace=False)] = 1
    return X


def test_breaking_ties_by_the_lower_row_makes_unrelated_spaces_look_aligned():
    X, Y = several_hot(200, 800, 1), several_hot(200, 800, 2)
    lists = [torch.from_numpy(np.argsort(-similar_of(side), axis=1, kind="stable")[:, :10]) for side in (X, Y)]
    orders = random_orders(200, 99)
    naive = float(overlap(*lists).mean())
    draws = [float(overlap(lists[0], relabel(lists[1], order)).mean()) for order in orders]
    assert p_value(naive, np.array(draws)) == 0.01  # the rows are unrelated
    observed, drawn = null("mutual_knn", [X, Y], [(0, 1)])
    assert p_value(observed, drawn) > 0.05
    assert naive > observed[0] + 0.05


def similar_of(X) -> np.ndarray:
    similar = unit(X) @ unit(X).T
    np.fill_diagonal(similar, -1)
    return np.round(similar, 6)


def test_cycle_knn_of_unrelated_spaces_is_high():
    n, k = 300, 10
    scores = [score("cycle_knn", *unrelated(n, 3, 3, seed), k=k) for seed in range(8)]
    assert np.mean(scores) == pytest.approx(1 - (1 - 1 / (n - 1)) ** (k * k), abs=0.03)


def test_mutual_knn_of_the_same_relation_decreases_with_more_rows():
    X, Y = shared_latent(800)
    scores = [score("mutual_knn", X[:n], Y[:n]) for n in (100, 300, 800)]
    assert scores[0] > scores[1] + 0.03 > scores[2] + 0.06


def test_one_clipping_threshold_for_all_layers_distorts_the_late_ones():
    early, late = [gaussian(200, 16, seed) for seed in range(3)], 10 * gaussian(200, 16, 3)
    shared = np.quantile(np.abs(np.hstack([*early, late])), 0.95)
    own = np.quantile(np.abs(late), 0.95)
    assert all(np.abs(layer).max() < shared for layer in early)
    assert np.mean(np.abs(late) > shared) > 0.15
    after_shared, after_own = (score("mutual_knn", late, np.clip(late, -limit, limit)) for limit in (shared, own))
    assert after_shared < after_own - 0.08


# --- errors and p-values ----------------------------------------------------------------------------------------------


def test_resampling_rows_with_replacement_makes_copies_neighbours():
    (X, Y), random = unrelated(200, 8, 6), np.random.default_rng(0)
    chance, observed = 10 / 199, score("mutual_knn", X, Y)
    again = [naive_mutual_knn(X[rows], Y[rows]) for rows in random.integers(0, 200, (5, 200))]
    error = standard_error("mutual_knn", X, Y)
    assert np.mean(again) > 2 * chance
    assert abs(observed - chance) < 4 * error
    assert np.mean(again) - observed > 10 * error


def test_shuffling_lists_without_relabelling_their_entries_makes_the_null_too_narrow():
    n, k, n_spaces = 60, 10, 24
    spaces = [gaussian(n, 3, seed) for seed in range(n_spaces)]
    pairs = [(i, j) for i in range(n_spaces) for j in range(i)]
    observed, relabelled = null("mutual_knn", spaces, pairs, k=k)
    masks = [neighbour_mask(space, k) for space in spaces]
    orders, rows = np.random.default_rng(0).permuted(np.tile(np.arange(n), (99, 1)), axis=1), np.arange(n)
    lists_only = np.array([(masks[i] @ masks[j].T)[rows, orders].mean(axis=1) / k for i, j in pairs])
    assert relabelled.std() == pytest.approx(observed.std(), rel=0.1)
    assert lists_only.std() < 0.85 * observed.std()
    assert np.mean(p_value(observed, relabelled) <= 0.05) < 0.065
    assert np.mean(p_value(observed, lists_only) <= 0.05) > 0.08


def layers(n: int, n_layers: int, seed: int) -> list[np.ndarray]:
    """Return related spaces, like the layers of one encoder."""
    base = gaussian(n, 6, seed)
    return [base + 0.6 * gaussian(n, 6, seed + 1 + layer) for layer in range(n_layers)]


def test_the_best_layer_pair_needs_a_null_of_the_best_pair_under_shared_permutations():
    n, n_layers, best = 50, 4, []
    pairs = [(i, n_layers + j) for i in range(n_layers) for j in range(n_layers)]
    for trial in range(20):
        spaces = layers(n, n_layers, 1000 + 20 * trial) + layers(n, n_layers, 1010 + 20 * trial)
        observed, draws = null("mutual_knn", spaces, pairs, k=5, seed=trial)
        random = np.random.default_rng(trial)
        apart = random.permuted(draws, axis=1)  # as if every pair had different permutations
        winner = int(observed.argmax())
        own, joint, separate = draws[winner], draws.max(axis=0), apart.max(axis=0)
        best.append([float(p_value(observed.max(), null)) for null in (own, joint, separate)])
    own, joint, separate = np.mean(best, axis=0)
    assert 0.35 < joint < 0.65
    assert own < joint - 0.2
    assert separate > joint + 0.02
