"""Few or ill-conditioned pairs give a sane map, with a note on what is wrong; never NaN and never a crash."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.spaces import cone, gaussian, names, shared_latent

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.names import METHODS, Method
from repstitch.spaces import Space
from repstitch.workflows.training import train

FAST: dict[str, Any] = {"device": "cpu", "epochs": 1, "width": 8, "batch_size": 64, "temperatures": (1.0,)}
CLOSED = METHODS[:3]
EVERY = (*CLOSED, "auto")


def learn(X, Y, method: str = "canonical", **options):
    return train(X, Y, method=cast(Method, method), source_space="old", target_space="new", **(FAST | options))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def assert_sane(stitcher, X: np.ndarray, Y: np.ndarray) -> None:
    """Check that the map is finite, that its outputs have about the length of target rows, and that its scores are not
    clearly below those of a constant output or of chance.
    """
    card = stitcher.scorecard
    assert all(bool(torch.isfinite(tensor).all()) for tensor in stitcher.map.tensors().values())
    translated = stitcher.translate(X)
    assert np.isfinite(translated).all()
    with torch.inference_mode():
        raw = stitcher.map(torch.from_numpy(unit(X.astype(np.float32)))).numpy()
    # Target rows have unit length and the largest gain is 8. A map that interpolates noise would give unseen rows a
    # length far outside this range.
    assert 0.05 < np.median(np.linalg.norm(raw, axis=1)) < 9
    assert card.reconstruction.cosine > card.reconstruction.cosine_floor - 0.25
    assert card.reconstruction.norm_ratio < 9
    # recall@10 may be at most three standard errors, for n queries, below chance.
    chance, n = card.chance.recall_at(10).score, card.n
    assert card.query.recall_at(10).score >= chance - 3 * (chance * (1 - chance) / n) ** 0.5


def assert_ranks_above_chance(stitcher, times: float = 2.0) -> None:
    """Check that the counterpart ranks `times` higher than by chance, which is half of the pool at the median."""
    card = stitcher.scorecard
    assert card.query.median_rank < card.pool / 2 / times


def has_note(stitcher, words: str) -> bool:
    return any(words in note for note in stitcher.scorecard.notes)


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("n", [20, 50, 200])
def test_few_pairs_give_a_sane_map(n, method):
    X, Y = shared_latent(n, rank=4, d_source=24, d_target=20, noise=0.3)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    if n > 20:
        assert_ranks_above_chance(stitcher)
    if n < 50:
        assert has_note(stitcher, "fewer than the 24 dimensions of the source")


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize(("d_source", "d_target", "side"), [(300, 16, "source"), (16, 300, "target")])
def test_more_dimensions_than_pairs_give_a_sane_map(d_source, d_target, side, method):
    X, Y = shared_latent(100, rank=4, d_source=d_source, d_target=d_target, noise=0.3)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher)
    assert has_note(stitcher, f"fewer than the 300 dimensions of the {side}")


@pytest.mark.parametrize("method", EVERY)
def test_few_pairs_of_noise_in_many_dimensions_give_a_sane_map(method):
    X, Y = gaussian(60, 300, 3), gaussian(60, 64, 4)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert has_note(stitcher, "look unrelated")


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("kind", ["rank 3 of 64", "doubled columns"])
def test_rank_deficient_sides_give_a_sane_map_and_a_note(kind, side, method):
    if kind == "rank 3 of 64":
        deficient, full = shared_latent(200, rank=3, d_source=64, d_target=16, noise=0)
        full = full + 0.1 * gaussian(200, 16, 3)
        spans = "span 3 of at most"
    else:
        half, full = shared_latent(200, rank=6, d_source=16, d_target=20, noise=0.3)
        deficient = np.concatenate([half, half], axis=1)
        spans = "span 16 of at most"
    X, Y = (deficient, full) if side == "source" else (full, deficient)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher)
    assert has_note(stitcher, f"The {side} rows {spans}")


@pytest.mark.parametrize("method", EVERY)
def test_float16_files_give_a_sane_map(method, tmp_path):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.3)
    sides = []
    for rows, name in ((X, "old"), (Y, "new")):
        path = tmp_path / f"{name}.parquet"
        write(path, Embeddings(rows.astype(np.float16), Space(name, rows.shape[1]), ids=names(200)))
        sides.append(path)
    stitcher = train(*sides, method=method, **FAST)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher, 5)
    assert [note for note in stitcher.scorecard.notes if "confidence is not calibrated" not in note] == []


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_matter(scale, method):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.3)
    stitcher = learn(X * np.float32(scale), Y / np.float32(scale), method)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher, 5)
    assert [note for note in stitcher.scorecard.notes if "confidence is not calibrated" not in note] == []


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("side", ["source", "target"])
def test_columns_of_unbalanced_scales_give_a_sane_map_and_a_note(side, method):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.3)
    rows = X if side == "source" else Y
    rows *= np.logspace(-3, 3, rows.shape[1], dtype=np.float32)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert has_note(stitcher, f"One {side} dimension varies")


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_nearly_constant_column_gives_a_sane_map_and_a_note(side, method):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.3)
    (X if side == "source" else Y)[:, 5] = 2 + 1e-6 * gaussian(200, 1, 9)[:, 0]
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher, 5)
    assert has_note(stitcher, f"{side} dimensions are constant or nearly so")


@pytest.mark.parametrize("method", EVERY)
def test_narrow_cones_give_a_sane_map(method):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.3)
    narrow = [cone(200, rows.shape[1], 0.0)[:1] + np.float32(0.01) * rows for rows in (X, Y)]
    stitcher = learn(narrow[0], narrow[1], method)
    assert_sane(stitcher, narrow[0], narrow[1])
    assert_ranks_above_chance(stitcher, 5)


@pytest.mark.parametrize("method", EVERY)
def test_heavy_tails_give_a_sane_map(method):
    X, Y = shared_latent(200, rank=6, d_source=24, d_target=20, noise=0.1)
    tails = np.random.default_rng(5)
    X = (X + 0.1 * tails.standard_t(1, X.shape)).astype(np.float32)
    Y = (Y + 0.1 * tails.standard_t(1, Y.shape)).astype(np.float32)
    stitcher = learn(X, Y, method)
    assert_sane(stitcher, X, Y)
    assert_ranks_above_chance(stitcher)
