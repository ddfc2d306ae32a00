import math

import numpy as np
import pytest
from helpers.spaces import cone, gaussian, pairs_of, shared_latent

from repstitch.embeddings import near_duplicates
from repstitch.embeddings.cells import directions
from repstitch.embeddings.near_duplicates import find_near_duplicates


def nearly_repeating(noise: float, sides: str = "XY", make=gaussian, n: int = 400):
    """Return 400 pairs and the 240 training rows. Rows 300 … 319 repeat rows 0 … 19 up to noise."""
    X, Y = make(n, 32, seed=0), make(n, 24, seed=1)
    for side, seed in (("X", 2), ("Y", 3)):
        rows = X if side == "X" else Y
        if side in sides:
            spread = rows.std(0).mean()
            rows[300:320] = rows[:20] + np.float32(noise * spread) * gaussian(20, rows.shape[1], seed)
    return pairs_of(X, Y), np.arange(240)


@pytest.mark.parametrize("make", [gaussian, cone])
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.05])
def test_exactly_the_near_duplicates_of_training_pairs_are_found(make, noise):
    pairs, train = nearly_repeating(noise, make=make)
    np.testing.assert_array_equal(np.flatnonzero(find_near_duplicates(pairs, train)), np.arange(300, 320))


@pytest.mark.parametrize("spread", [0.3, 0.03, 0.003])
def test_unrelated_rows_of_a_cone_are_not_near_duplicates(spread):
    pairs = pairs_of(cone(400, 32, spread), cone(400, 24, spread, seed=1))
    assert not find_near_duplicates(pairs, np.arange(240)).any()


@pytest.mark.parametrize("rank", [4, 8])
def test_neighbours_in_a_crowded_space_are_not_near_duplicates(rank):
    """In a space of few directions the nearest of many rows is near without being a duplicate."""
    X, Y = shared_latent(4000, rank=rank, d_source=16, d_target=16, noise=0.01)
    assert find_near_duplicates(pairs_of(X, Y), np.arange(2400)).mean() < 0.02


def test_rows_near_in_one_space_only_are_not_near_duplicates():
    for sides in "XY":
        pairs, train = nearly_repeating(0.001, sides)
        assert not find_near_duplicates(pairs, train).any()


def test_rows_near_two_different_training_pairs_are_not_near_duplicates():
    pairs, train = nearly_repeating(0.0)
    pairs.Y[300:320] = pairs.Y[100:120]
    assert not find_near_duplicates(pairs, train).any()


def test_near_duplicates_are_found_even_if_most_held_out_rows_have_one():
    X, Y = gaussian(100, 32), gaussian(100, 24, 1)
    four = [
        np.concatenate([side + np.float32(0.02) * gaussian(len(side), side.shape[1], s) for s in range(4)])
        for side in (X, Y)
    ]
    assert find_near_duplicates(pairs_of(*four), np.arange(240))[240:].all()


def test_without_training_rows_or_without_others_there_are_no_near_duplicates():
    pairs, train = nearly_repeating(0.0)
    for rows in (train[:0], np.arange(len(pairs))):
        assert not find_near_duplicates(pairs, rows).any()


# --- compared with all pairs of rows ----------------------------------------------------------------------------------


def centred(X: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit rows without the training mean at unit length, their lengths before, and the mean."""
    U = directions(X)
    mean = U[train].mean(0)
    lengths = np.linalg.norm(U - mean, axis=1, keepdims=True)
    return (U - mean) / lengths, lengths, mean


def limit(U: np.ndarray, train: np.ndarray, others: np.ndarray) -> float:
    """Return the largest gap of near rows: a fiftieth of the typical gap to the tenth nearest, from 0.00001 to 0.01."""
    sample = others[np.linspace(0, len(others) - 1, min(len(others), 256)).astype(int)]
    tenth = np.sort(1 - U[sample] @ U[train].T, axis=1)[:, 9]
    return float(np.clip(np.median(tenth) / 50, 1e-5, 0.01))


def repeat_at(gap: float, X: np.ndarray, train: np.ndarray, rows: np.ndarray, copied: np.ndarray, seed: int) -> None:
    """Replace `rows` by copies of the training rows `copied`, with this share of the largest gap of near rows."""
    U, lengths, mean = centred(X, train)
    near = gap * limit(U, train, np.setdiff1d(np.arange(len(X)), train))
    aside = gaussian(len(copied), X.shape[1], seed)
    aside -= (aside * U[copied]).sum(1, keepdims=True) * U[copied]
    turned = (1 - near) * U[copied] + math.sqrt(1 - (1 - near) ** 2) * directions(aside)
    X[rows] = mean + lengths[copied] * turned


def by_all_pairs(X: np.ndarray, Y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return the mask of near duplicates by comparing each row with each training row, in both spaces."""
    near, others = np.zeros(len(X), dtype=bool), np.setdiff1d(np.arange(len(X)), train)
    sides = [centred(side, train)[0] for side in (X, Y)]
    limits = [limit(U, train, others) for U in sides]
    for rows in np.array_split(others, -(-len(others) // 1024)):
        alike = [1 - U[rows] @ U[train].T <= most for U, most in zip(sides, limits, strict=True)]
        near[rows] = (alike[0] & alike[1]).any(1)
    return near


def clusters(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows in clusters of about fifty; the same seed and n give the same clusters in every dimension."""
    cluster = np.random.default_rng(0).integers(0, n // 50, n)
    return gaussian(n // 50, d, seed)[cluster] + np.float32(0.3) * gaussian(n, d, seed + 1)


def latent(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows that vary in four directions, and a little in all."""
    return gaussian(n, 4) @ gaussian(4, d, seed) + np.float32(0.01) * gaussian(n, d, seed + 1)


def clumps(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows of which two clumps hold 40 %."""
    X, k = gaussian(n, d, seed), 4 * n // 10
    X[:k] = gaussian(2, d, seed + 1)[np.arange(k) % 2] + np.float32(0.14) * X[:k]
    return X[np.random.default_rng(0).permutation(n)]


def labels(n: int, d: int, seed: int) -> np.ndarray:
    """Return rows with only ten different values in the second space."""
    return gaussian(n, d, seed) if seed < 10 else gaussian(10, d, seed)[np.arange(n) % 10]


WORLDS = {
    "gaussian": gaussian,
    "cone": cone,
    "clusters": clusters,
    "latent": latent,
    "labels": labels,
    "clumps": clumps,
}


def world(name: str, n: int, gap: float, d_source: int = 96, d_target: int = 64):
    """Return both sides and the training rows. A tenth of the other rows repeat a training row at this share of the
    limit in both spaces."""
    random = np.random.default_rng(1)
    order = random.permutation(n)
    train, others = np.sort(order[: 6 * n // 10]), order[6 * n // 10 :]
    rows, copied = others[: n // 25], random.choice(train, n // 25)
    X, Y = WORLDS[name](n, d_source, seed=3), WORLDS[name](n, d_target, seed=13)
    for side, seed in ((X, 5), (Y, 6)):
        repeat_at(gap, side, train, rows, copied, seed)
    return X, Y, train


@pytest.mark.parametrize("gap", [0.95, 0.3])
@pytest.mark.parametrize("name", WORLDS)
def test_nearly_all_near_duplicates_are_found_and_no_others(name, gap):
    X, Y, train = world(name, 4000, gap)
    exact, near = by_all_pairs(X, Y, train), find_near_duplicates(pairs_of(X, Y), train)
    assert exact.sum() >= 150
    assert not (near & ~exact).any()
    assert near.sum() >= 0.98 * exact.sum()


def test_near_duplicates_are_found_in_clumps_of_thousands_of_rows():
    """Of 20,000 rows, two clumps hold 40 %: thousands of training rows are in one cell."""
    X, Y, train = world("clumps", 20_000, 0.95)
    exact, near = by_all_pairs(X, Y, train), find_near_duplicates(pairs_of(X, Y), train)
    assert exact.sum() >= 700
    assert not (near & ~exact).any()
    assert near.sum() >= 0.95 * exact.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_at_50_000_rows_nearly_all_near_duplicates_are_found(name):
    X, Y, train = world(name, 50_000, 0.95)
    exact, near = by_all_pairs(X, Y, train), find_near_duplicates(pairs_of(X, Y), train)
    assert exact.sum() >= 1900
    assert not (near & ~exact).any()
    assert near.sum() >= 0.95 * exact.sum()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("gaussian", "clusters") else pytest.mark.slow)
        for name in sorted(WORLDS.keys() - {"clumps"})  # a clump in one cell is compared whole
    ],
)
def test_the_number_of_rows_compared_grows_hardly_faster_than_the_rows(monkeypatch, name):
    compared: list[int] = []
    gaps, repeat_any = near_duplicates._Side.gaps, near_duplicates._repeat_any

    def counted(self, rows, others):
        compared.append(len(rows))
        return gaps(self, rows, others)

    def counted_blocks(rows, repeated, *rest):
        compared.append(len(rows) * len(repeated))
        return repeat_any(rows, repeated, *rest)

    monkeypatch.setattr(near_duplicates._Side, "gaps", counted)
    monkeypatch.setattr(near_duplicates, "_repeat_any", counted_blocks)
    counts = []
    for n in (4000, 32_000):
        compared.clear()
        X, Y, train = world(name, n, 0.95)
        find_near_duplicates(pairs_of(X, Y), train)
        counts.append(sum(compared))
    assert math.log(counts[1] / counts[0]) / math.log(8) <= 1.3
