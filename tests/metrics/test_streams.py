"""Alignment metrics computed from streamed sums equal those computed from all rows at once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.spaces import cone, gaussian, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS
from repstitch.metrics.streams import STREAMED, sums

SPACES: dict[str, Callable] = {
    "shared": lambda: shared_latent(300),
    "far from the origin": lambda: (shared_latent(300)[0] + 30, shared_latent(300)[1] - 3),
    "unrelated": lambda: unrelated(300, 20, 30),
    "cone": lambda: (cone(300), shared_latent(300)[1]),
    "two cones": lambda: (cone(300, spread=0.02), cone(300, 12, seed=3)),
    "sorted": lambda: tuple(side[np.argsort(shared_latent(300)[0][:, 0])] for side in shared_latent(300)),
}


def streamed(X, Y, size: int = 70):
    return sums((X[at : at + size], Y[at : at + size]) for at in range(0, len(X), size))


@pytest.mark.parametrize("metric", STREAMED)
@pytest.mark.parametrize("name", SPACES)
def test_a_streamed_score_equals_the_score_of_all_rows(name, metric):
    X, Y = SPACES[name]()
    whole = METRICS[metric](torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(np.ascontiguousarray(Y)))
    for size in (7, 70, 300):
        assert STREAMED[metric](streamed(X, Y, size)) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("metric", ["cka", "cka_unbiased", "cca", "procrustes"])
def test_a_space_that_does_not_vary_is_refused(metric):
    with pytest.raises(InputError, match="must vary"):
        STREAMED[metric](streamed(np.ones((60, 4), np.float32), gaussian(60, 3)))


@pytest.mark.parametrize("metric", ["cca", "pwcca", "linear_r2"])
def test_too_few_rows_are_refused_as_for_rows_in_memory(metric):
    with pytest.raises(InputError, match="needs more rows than dimensions"):
        STREAMED[metric](streamed(*unrelated(20, 30, 30)))


def test_unbiased_cka_needs_four_rows():
    with pytest.raises(InputError, match="at least 4; got 3"):
        STREAMED["cka_unbiased"](streamed(*unrelated(3, 4, 4)))


@pytest.mark.parametrize("metric", STREAMED)
def test_batches_without_rows_add_nothing(metric):
    X, Y = shared_latent(60)
    empty = (X[:0], Y[:0])
    assert STREAMED[metric](sums([empty, (X[:40], Y[:40]), empty, (X[40:], Y[40:])])) == pytest.approx(
        STREAMED[metric](streamed(X, Y, 40)), abs=1e-9
    )
    with pytest.raises(InputError, match="at least one pair of rows; got none"):
        sums([empty])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(np.ones((5, 3)), np.ones((4, 2)))], "must be matrices with the same number of rows"),
        (
            [(np.ones((5, 3)), np.ones((5, 2))), (np.ones((5, 4)), np.ones((5, 2)))],
            "All batches must have the numbers of columns",
        ),
        ([(np.ones((5, 3)), np.full((5, 2), np.nan))], "NaN"),
    ],
)
def test_batches_that_do_not_match_are_refused(batches, message):
    with pytest.raises(InputError, match=message):
        sums(batches)


def test_directions_of_less_than_a_millionth_of_the_variance_are_left_out():
    X, Y = unrelated(400, 6, 6)
    X[:, 3:] = Y[:, 3:] * 1e-4  # shared, and too small to be seen in float32 sums
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    whole, kept = METRICS["cca"](x, y), METRICS["cca"](x[:, :3], y)
    assert STREAMED["cca"](streamed(X, Y)) == pytest.approx(kept, abs=1e-4)
    assert whole > kept + 0.3


def test_arrays_that_are_read_only_are_streamed_without_a_warning():
    """As `repstitch.read` returns them, and as NumPy maps files."""
    X, Y = unrelated(60, 5, 4)
    whole = STREAMED["cka_unbiased"](streamed(X, Y))
    for side in (X, Y):
        side.flags.writeable = False
    assert STREAMED["cka_unbiased"](streamed(X, Y)) == whole
