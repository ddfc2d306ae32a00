import json

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, rotation, shared_latent, unrelated

from repstitch.alignment.asymmetry import asymmetry
from repstitch.alignment.hypothesis_results import Asymmetry
from repstitch.errors import InputError
from repstitch.fit.closed_form import fit_ridge
from repstitch.metrics.moments import moments
from repstitch.records import Estimate


def compared(X, Y, **kwargs) -> Asymmetry:
    return asymmetry(X, Y, **({"source": "A", "target": "B", "permutations": 19} | kwargs))


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.interval is not None
    return estimate.interval


def spread_out(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows whose dimensions vary by d, d − 1 … 1."""
    return (gaussian(n, d, seed) * np.sqrt(np.arange(d, 0, -1))).astype(np.float32)


def test_a_linear_image_of_lower_rank_is_predicted_and_does_not_predict_the_rest():
    X = spread_out(1500, 8)
    Y = (X[:, :3] @ rotation(3)).astype(np.float32)
    found = compared(X, Y)
    known = (8 + 7 + 6) / 36  # the share of the variance of X that Y holds
    assert found.r2_forward.score == pytest.approx(1, abs=1e-4)
    assert found.r2_backward.score == pytest.approx(known, abs=0.02)
    assert ends(found.r2_backward)[0] < known < ends(found.r2_backward)[1]
    assert ends(found.difference)[0] < 1 - known < ends(found.difference)[1]
    assert found.left_over["source"]["variance"] == pytest.approx(1 - found.r2_backward.score)
    assert found.left_over["target"] == {"variance": pytest.approx(0, abs=1e-4), "directions": 3, "predicted": 3}
    assert found.left_over["source"]["predicted"] <= 4 < found.left_over["source"]["directions"]
    assert found.shared.above == 3
    assert found.verdict.startswith("A predicts B better than B predicts A: R² 1.000 against 0.5")
    assert "B does not predict 4" in found.verdict


def test_the_other_way_round_the_same_is_said_of_the_other_side():
    X = spread_out(600, 6)
    Y = (X[:, :2] @ rotation(2)).astype(np.float32)
    ahead, back = compared(X, Y), compared(Y, X, source="B", target="A")
    assert back.r2_forward.score == pytest.approx(ahead.r2_backward.score, abs=1e-4)
    assert back.difference.score == pytest.approx(-ahead.difference.score, abs=1e-4)
    assert back.verdict == ahead.verdict


def test_a_rotated_scaled_and_moved_copy_is_predicted_both_ways():
    X = spread_out(300, 6)
    found = compared(X, (3 * X @ rotation(6) + 5).astype(np.float32))
    assert (found.r2_forward.score, found.r2_backward.score) == pytest.approx((1, 1), abs=1e-4)
    again = compared(X @ rotation(6, 3).astype(np.float32), X)
    assert again.r2_forward.score == pytest.approx(found.r2_forward.score, abs=1e-4)


def test_views_of_one_latent_predict_each_other_about_equally():
    latent = gaussian(800, 10)
    X, Y = (latent @ rotation(10, seed) + 0.5 * gaussian(800, 10, seed) for seed in (1, 2))
    found = compared(X, Y)
    assert found.verdict.startswith("each space predicts the other about equally well: R² is 0.")
    assert ends(found.difference)[0] < 0 < ends(found.difference)[1]
    assert found.r2_forward.score > found.null_forward["high"]


def test_unrelated_spaces_predict_nothing():
    runs = [compared(*unrelated(200, 12, 9, seed=seed)) for seed in range(20)]
    assert sum(run.verdict.startswith("neither space predicts the other beyond chance") for run in runs) >= 17
    assert all(abs(r2.score) < 0.05 for run in runs for r2 in (run.r2_forward, run.r2_backward))
    assert sum(run.left_over[side]["predicted"] > 0 for run in runs for side in ("source", "target")) <= 5
    assert all(run.left_over["target"]["variance"] > 0.95 for run in runs)


def test_directions_that_are_not_predicted_are_not_counted_beside_those_that_are():
    X = gaussian(500, 20)
    Y = np.concatenate([3 * X[:, :5], gaussian(500, 10, seed=1)], axis=1)
    found = compared(X, Y).left_over["target"]
    assert found["predicted"] == 5 < found["directions"]


def test_wide_spaces_of_few_rows_do_not_look_related():
    found = compared(*unrelated(80, 150, 120))
    assert found.verdict.startswith("neither space predicts the other beyond chance")
    assert "the maps from A and B were fitted to 64 rows, but both have at least as many dimensions" in found.verdict
    assert abs(found.r2_forward.score) < 0.05


def test_a_wide_space_of_few_rows_still_shows_what_it_shares():
    found = compared(*shared_latent(120, rank=2, d_source=200, d_target=8, noise=0.3))
    assert found.r2_forward.score > 0.8
    assert "the map from A was fitted to 96 rows, but A has at least as many dimensions" in found.verdict


def test_shuffled_pairs_fall_to_the_null():
    X, Y = shared_latent(400)
    found = compared(X, Y[np.random.default_rng(0).permutation(400)])
    assert found.r2_forward.score < 0.01
    assert found.verdict.startswith("neither space predicts the other beyond chance")


def test_r2_is_what_ridge_gives_out_of_fold_at_its_best_penalty():
    X, Y = shared_latent(300, noise=1.0)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    parts = list(torch.randperm(300, generator=torch.Generator().manual_seed(7)).tensor_split(4))
    best = -np.inf
    for penalty in np.logspace(-3, 2, 21):
        error = spread = 0.0
        for part in parts:
            rest = np.setdiff1d(np.arange(300), part)
            map = fit_ridge(moments((x[rest], y[rest])), penalty)
            error += float((y[part] - map(x[part])).square().sum())
            spread += float((y[part] - y[rest].mean(0)).square().sum())
        best = max(best, 1 - error / spread)
    assert compared(X, Y, folds=4, seed=7).r2_forward.score == pytest.approx(best, abs=0.01)


def test_asymmetry_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        compared(gaussian(40, 5), gaussian(40, 4, seed=1), permutations=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_same_seed_gives_the_same_numbers():
    X, Y = shared_latent(200)
    assert compared(X, Y, seed=3) == compared(torch.from_numpy(X), torch.from_numpy(Y), seed=3)
    assert compared(X, Y, seed=3).null_forward != compared(X, Y, seed=4).null_forward


@pytest.mark.parametrize(
    ("X", "Y", "given", "message"),
    [
        (gaussian(30, 3), gaussian(29, 3), {}, r"matrices with the same number of rows; got \(30, 3\) and \(29, 3\)"),
        (gaussian(30, 3)[0], gaussian(30, 3), {}, "`X` and `Y` must be matrices"),
        (gaussian(19, 3), gaussian(19, 3), {}, "at least 20 rows for 5 folds; got 19"),
        (gaussian(30, 3), gaussian(30, 3), {"folds": 10}, "at least 40 rows for 10 folds; got 30"),
        (gaussian(30, 3), gaussian(30, 3), {"folds": 1}, "`folds` must be at least 2; got 1"),
        (gaussian(30, 3), gaussian(30, 3), {"permutations": 0}, "`permutations` must be at least 1; got 0"),
        (gaussian(30, 3) * np.nan, gaussian(30, 3), {}, "The pairs must be finite"),
        (gaussian(30, 3), np.ones((30, 3), np.float32), {}, "The target rows must differ from one another"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(X, Y, given, message):
    with pytest.raises(InputError, match=message):
        compared(X, Y, **given)


def test_an_asymmetry_is_plain_json():
    found = compared(*shared_latent(100))
    values = found.to_dict()
    assert Asymmetry.from_dict(json.loads(json.dumps(values, allow_nan=False))) == found
    assert values["verdict"].endswith(".")
    assert "\n" not in values["verdict"]
