"""Every metric matches its definition and has the range, invariances and chance level that the definition states."""

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from helpers.definitions import DEFINITIONS, neighbour_mask
from helpers.spaces import affine_image, cone, gaussian, rotation, shared_latent, unrelated

from repstitch.metrics.alignment import METRICS

Sides = tuple[np.ndarray, np.ndarray]


def score(name: str, X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Return the library's score of the rows as float32."""
    sides: Any = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y))
    return METRICS[name](*sides, k=k)


def noisy(X: np.ndarray, noise: float, seed: int = 9) -> np.ndarray:
    """Return the rows with added Gaussian noise of `noise` times their mean standard deviation."""
    return (X + noise * X.std(axis=0).mean() * gaussian(len(X), X.shape[1], seed)).astype(np.float32)


SPACES = {
    "random": lambda: unrelated(60, 8, 6),
    "correlated": lambda: shared_latent(60),
    "far from the origin": lambda: (shared_latent(60)[0] + 5, shared_latent(60)[1] - 3),
    "cone": lambda: (cone(60), noisy(cone(60), 0.7)),
    "two cones": lambda: (cone(60, 16, 0.5, seed=1), cone(60, 12, 0.2, seed=2)),
    "wide": lambda: (gaussian(30, 50), noisy(gaussian(30, 50), 1.0)[:, :40]),
}
UNDEFINED = {(name, "wide") for name in ("cca", "pwcca", "linear_r2")}  # 1 for any rows if n ≤ d + 1
ONE_WAY = ("cycle_knn", "cknna_released", "pwcca", "linear_r2")
CASES = [(name, spaces) for name in DEFINITIONS for spaces in SPACES if (name, spaces) not in UNDEFINED]
SIGNED = ("cka_unbiased", "cknna", "cknna_released", "rsa")


def test_the_table_and_the_definitions_name_the_same_metrics():
    assert set(METRICS) == set(DEFINITIONS)


@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize(("name", "spaces"), CASES)
def test_a_metric_matches_its_definition(name, spaces, k):
    X, Y = SPACES[spaces]()
    for source, target in ((X, Y), (Y, X)):
        expected = DEFINITIONS[name](source, target, k)
        assert score(name, source, target, k) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "spaces"), [case for case in CASES if case[0] != "cycle_knn"])
def test_a_space_scores_one_with_itself(name, spaces):
    X, Y = SPACES[spaces]()
    for side in (X, Y):
        # the arc cosine turns a rounding error ε into about .9 sqrt(ε)
        assert score(name, side, side) == pytest.approx(1, abs=1e-4 if name == "angular" else 1e-6)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_cycle_knn_of_a_space_with_itself_is_the_share_of_rows_with_a_mutual_neighbour(k):
    X = shared_latent(80)[0]
    near = neighbour_mask(X, k)
    mutual = (near * near.T).any(axis=1).mean()
    assert score("cycle_knn", X, X, k) == pytest.approx(mutual, abs=1e-6)
    assert mutual < 1 or k == 10


@pytest.mark.parametrize(("name", "spaces"), CASES)
def test_scores_stay_inside_their_range(name, spaces):
    X, Y = SPACES[spaces]()
    assert (-1 if name in SIGNED else 0) <= score(name, X, Y, k=3) < 0.999


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_order_of_the_rows_does_not_matter(name):
    X, Y = shared_latent(80)
    order = np.random.default_rng(0).permutation(80)
    assert score(name, X[order], Y[order]) == pytest.approx(score(name, X, Y), abs=1e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_metric_states_whether_it_is_symmetric(name):
    X, Y = SPACES["two cones"]()
    apart = abs(score(name, X, Y, k=5) - score(name, Y, X, k=5))
    assert METRICS[name].symmetric == (name not in ONE_WAY)
    assert apart > 1e-5 if name in ONE_WAY else apart < 1e-6


# --- what a metric ignores --------------------------------------------------------------------------------------------


def stretch(d: int) -> np.ndarray:
    """Return an invertible map (d, d) that is not a rotation: it scales by .3 to 3 along rotated axes."""
    return rotation(d, 5) @ np.diag(np.linspace(0.3, 3, d)) @ rotation(d, 6)


CHANGES = {
    "rotation": lambda X: X @ rotation(X.shape[1], 3),
    "row scale": lambda X: X * np.random.default_rng(0).uniform(0.1, 10, (len(X), 1)),
    "isotropic scale": lambda X: 7 * X,
    "translation": lambda X: X + np.random.default_rng(1).standard_normal(X.shape[1]) * 3,
    "linear map": lambda X: X @ stretch(X.shape[1]),
}
BY_COSINE = {"rotation", "row scale", "isotropic scale"}
BY_SHAPE = {"rotation", "isotropic scale", "translation"}
BY_SPAN = {"rotation", "isotropic scale", "translation", "linear map"}
BY_COLUMN = {"isotropic scale", "translation"}
IGNORES = {  # the changes of X and the changes of Y that leave the score unchanged
    "mutual_knn": (BY_COSINE, BY_COSINE),
    "cycle_knn": (BY_COSINE, BY_COSINE),
    "lcs_knn": (BY_COSINE, BY_COSINE),
    "edit_knn": (BY_COSINE, BY_COSINE),
    "cka": (BY_SHAPE, BY_SHAPE),
    "cka_unbiased": (BY_SHAPE, BY_SHAPE),
    "cka_rbf": (BY_SHAPE, BY_SHAPE),
    "cknna": (BY_COSINE, BY_COSINE),
    "cknna_released": (BY_COSINE, BY_COSINE),
    "rsa": (BY_COSINE, BY_COSINE),
    "svcca": (BY_SHAPE, BY_SHAPE),
    "pwcca": (BY_COLUMN, BY_SPAN),
    "cca": (BY_SPAN, BY_SPAN),
    "procrustes": (BY_SHAPE, BY_SHAPE),
    "angular": (BY_SHAPE, BY_SHAPE),
    "linear_r2": (BY_SPAN, BY_SHAPE),
}


def latent_with_minor_directions() -> Sides:
    """Return two views of the same latent rows, with columns of such sizes that some directions lie outside 99 % of the
    variance.
    """
    X, Y = shared_latent(80)
    return X * np.geomspace(1, 0.05, X.shape[1]), Y * np.geomspace(1, 0.05, Y.shape[1])


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_metric_ignores_exactly_the_changes_it_states(name, change, side):
    sides = list(latent_with_minor_directions())
    before = score(name, *sides, k=3)
    sides[side] = CHANGES[change](sides[side])
    moved = abs(score(name, *sides, k=3) - before)
    if change in IGNORES[name][side]:
        assert moved < 1e-5
    else:
        assert moved > 1e-3


# --- chance -----------------------------------------------------------------------------------------------------------


def chance_of_neighbours(n: int, d: int, k: int) -> float:
    return k / (n - 1)


def chance_of_directions(n: int, d: int, k: int) -> float:
    """The singular values of a square Gaussian matrix average 8 / (3π) of their root mean square."""
    return 8 / (3 * np.pi) * np.sqrt(d / (n - 1))


CHANCE = {
    "mutual_knn": chance_of_neighbours,
    "cycle_knn": lambda n, d, k: 1 - (1 - 1 / (n - 1)) ** (k * k),
    "lcs_knn": chance_of_neighbours,
    "edit_knn": lambda n, d, k: 1 / (n - 1),
    "cka": lambda n, d, k: d / (n + d),
    "cka_unbiased": lambda n, d, k: 0.0,
    "cknna": chance_of_neighbours,
    "cknna_released": chance_of_neighbours,
    "rsa": lambda n, d, k: 0.0,
    "svcca": chance_of_directions,
    "pwcca": chance_of_directions,
    "cca": chance_of_directions,
    "procrustes": chance_of_directions,
    "angular": lambda n, d, k: 1 - 2 * np.arccos(chance_of_directions(n, d, k)) / np.pi,
    "linear_r2": lambda n, d, k: d / (n - 1),
}


@pytest.mark.parametrize("name", CHANCE)
def test_unrelated_spaces_score_the_stated_chance_level(name):
    n, d, k = 150, 12, 6
    scores = [score(name, *unrelated(n, d, d, seed), k=k) for seed in range(20)]
    expected, error = CHANCE[name](n, d, k), np.std(scores) / np.sqrt(len(scores))
    assert abs(np.mean(scores) - expected) < 4 * error + 0.1 * expected


def test_cka_rbf_of_unrelated_spaces_is_above_zero_and_higher_for_wider_spaces():
    narrow, wide = (score("cka_rbf", *unrelated(60, d, d)) for d in (5, 300))
    assert 0.1 < narrow < 0.3
    assert wide > 0.8


def test_the_chance_of_a_cycle_follows_from_how_often_each_row_is_a_neighbour():
    (X, Y), k = unrelated(60, 40, 30), 5
    chosen = neighbour_mask(X, k).sum(axis=0).astype(int)
    exact = 1 - np.mean([comb(59 - times, k) / comb(59, k) for times in chosen])
    shuffle = np.random.default_rng(0)
    scores = [score("cycle_knn", X, Y[shuffle.permutation(60)], k) for _ in range(100)]
    assert abs(np.mean(scores) - exact) < 4 * np.std(scores) / 10


# --- relations with a known answer ------------------------------------------------------------------------------------


def test_edit_knn_is_at_most_lcs_knn_which_is_at_most_mutual_knn():
    for make in SPACES.values():
        X, Y = make()
        assert 0 <= score("edit_knn", X, Y) <= score("lcs_knn", X, Y) <= score("mutual_knn", X, Y)


def test_an_affine_image_of_the_source_has_an_r2_of_one_in_that_direction_only():
    X, Y, _, _ = affine_image(100)
    assert score("linear_r2", X, Y) == pytest.approx(1, abs=1e-5)
    assert score("linear_r2", Y, X) < 0.9


@pytest.mark.parametrize("name", ["cca", "svcca", "pwcca"])
def test_metrics_of_directions_score_the_share_of_shared_directions(name):
    n = 2000
    shared = gaussian(n, 3)
    X, Y = np.hstack([shared, gaussian(n, 3, 1)]), np.hstack([shared, gaussian(n, 3, 2)])
    assert score(name, X, Y) == pytest.approx(0.5, abs=0.06)


def test_the_two_versions_of_cknna_differ():
    X, Y = SPACES["cone"]()
    assert abs(score("cknna", X, Y) - score("cknna_released", X, Y)) > 0.01


@pytest.mark.parametrize("name", ["cknna", "cknna_released"])
def test_graphs_are_compared_on_the_device_of_their_rows(name):
    metric = METRICS[name]
    x, y = (metric.prepare(torch.from_numpy(rows), 10, "X") for rows in shared_latent(60))
    far = replace(x, neighbours=x.neighbours[:, 5:], similarities=x.similarities[:, 5:])
    for pair in ((x.first(5), y.first(5)), (x.first(5), far)):  # the second pair shares no neighbours
        expected = metric.compare(*pair)
        with torch.device("meta"):  # a new tensor without an explicit device could not be added to the rows'
            assert metric.compare(*pair) == expected
