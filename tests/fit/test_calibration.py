import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, rotation
from scipy.special import ndtri

from repstitch.embeddings.normalising import normalise
from repstitch.errors import InputError
from repstitch.fit.calibration import auroc, auroc_interval, calibrate, evaluate, hit_chance
from repstitch.fit.closed_form import decompose, fit_ridge
from repstitch.metrics.moments import moments
from repstitch.stitchers.confidence import LEAST_ROWS, Calibration, calibration_from_tensors

D_SOURCE, D_TARGET, SHARED = 12, 10, 5
POOL = 200


def pairs(n: int, seed: int, strength=1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit rows with five shared numbers each, small in half of them. Four source directions hardly vary."""
    random = np.random.default_rng(seed)
    Z = random.standard_normal((n, SHARED)) * np.where(random.random((n, 1)) < 0.5, 0.3, 1.0) * strength
    sides, spread = [], np.array([0.4] * 3 + [0.02] * 4)
    for d, turn in ((D_SOURCE, 1), (D_TARGET, 2)):
        own = random.standard_normal((n, d - SHARED)) * spread[: d - SHARED]
        place = np.linspace(0, 2, d)
        sides.append(torch.from_numpy((np.hstack([Z, own]) @ rotation(d, turn) + place).astype(np.float32)))
    return tuple(normalise(side, "unit") for side in sides)  # type: ignore[return-value]


TRAIN, SELECT, HELD_OUT, TEST = (pairs(n, seed) for n, seed in ((600, 1), (300, 2), (300, 3), (1500, 4)))
FITTED = moments(TRAIN)
MAP, DECOMPOSED = fit_ridge(FITTED), decompose(FITTED)


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    made = calibrate(MAP, DECOMPOSED, SELECT, HELD_OUT, TRAIN[1], pool=POOL)
    assert made is not None
    return made


def measured(calibration: Calibration, X: torch.Tensor) -> dict[str, np.ndarray]:
    X = normalise(X, "unit")
    return {name: values.numpy() for name, values in calibration.measure(X, MAP(X)).items()}


# --- the measures -----------------------------------------------------------------------------------------------------


def test_each_measure_is_one_float32_per_row_within_its_range(fitted):
    rows = torch.cat([TEST[0], torch.from_numpy(gaussian(300, D_SOURCE, 9))])
    measures = measured(fitted, rows)
    assert tuple(measures) == fitted.names == (f"p_match@{POOL}", "cosine_lower", "p_typical", "shared", "distance")
    for name, values in measures.items():
        assert values.shape == (len(rows),)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        low = -1 if name == "cosine_lower" else 0
        assert ((values >= low) & (values <= (np.inf if name == "distance" else 1))).all()
    assert (measures["p_typical"] > 0).all()


def test_the_measures_of_a_row_do_not_depend_on_the_other_rows(fitted):
    alone, among = measured(fitted, TEST[0][7:8]), measured(fitted, TEST[0])
    for name in fitted.names:
        assert alone[name][0] == pytest.approx(among[name][7], rel=1e-4)


def test_the_distance_is_the_shrunk_mahalanobis_distance(fitted):
    X = TEST[0].double().numpy()
    covariance = np.cov(TRAIN[0].double().numpy().T, bias=True)
    shrunk = covariance + 0.1 * np.trace(covariance) / D_SOURCE * np.eye(D_SOURCE)
    centred = X - TRAIN[0].double().numpy().mean(0)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(shrunk), centred) / D_SOURCE)
    np.testing.assert_allclose(measured(fitted, TEST[0])["distance"], expected, rtol=1e-3)


def test_shared_is_large_for_a_rotated_target_and_near_zero_for_shuffled_targets():
    X = normalise(torch.from_numpy(gaussian(4000, 6, 1)), "unit")
    for Y, low, high in ((X @ torch.from_numpy(rotation(6, 2)).float(), 0.2, 1.0), (X[torch.randperm(4000)], 0, 0.02)):
        parts = [(X[at : at + 1000], Y[at : at + 1000]) for at in (0, 1000, 2000, 3000)]
        made = calibrate(fit_ridge(moments(parts[0])), decompose(moments(parts[0])), parts[1], parts[2], parts[0][1])
        assert made is not None
        shared = made.measure(parts[3][0], parts[3][1])["shared"]
        assert low <= float(shared.min()) <= float(shared.max()) <= high


# --- accuracy of the measures -----------------------------------------------------------------------------------------


def test_the_measures_are_accurate_on_held_out_rows(fitted):
    scores = evaluate(fitted, MAP, *TEST, (SELECT[1], HELD_OUT[1], TRAIN[1]))
    assert (scores.n, scores.pool, scores.calibrated, scores.calibration_rows) == (1500, POOL, True, 300)
    assert scores.ece <= 0.06
    assert scores.auroc is not None
    assert scores.auroc > 0.65
    assert (scores.usable, scores.reason) == (True, None)
    estimate = scores.auroc_estimate
    assert estimate is not None
    assert estimate.interval is not None
    assert 0.5 < estimate.interval[0] < scores.auroc < estimate.interval[1] < 0.9
    assert abs(scores.covered - 0.9) <= 3 * (0.09 / 1500 + 0.09 / 300) ** 0.5
    assert scores.unusual is not None
    assert scores.hits is not None
    assert abs(scores.unusual - 0.05) <= 3 * (0.0475 / 1500 + 0.0475 / 300) ** 0.5
    assert sum(part.n for part in scores.bins) == 1500
    curve = scores.risk_coverage
    assert curve[-1] == (1.0, pytest.approx(1 - scores.hits))
    assert curve[9][1] < 0.85 * curve[-1][1]
    scores.check()


def test_the_match_probability_refers_to_the_pool_size_in_its_name(fitted):
    larger = calibrate(MAP, DECOMPOSED, SELECT, HELD_OUT, TRAIN[1], pool=1000)
    assert larger is not None
    assert larger.names[0] == "p_match@1000"
    few, many = (measured(c, TEST[0])[c.names[0]].mean() for c in (fitted, larger))
    assert many < few - 0.1


def test_the_name_states_the_actual_pool_size_if_there_are_fewer_rows():
    made = calibrate(
        MAP, DECOMPOSED, (SELECT[0][:30], SELECT[1][:30]), (HELD_OUT[0][:40], HELD_OUT[1][:40]), TRAIN[1][:50]
    )
    assert made is not None
    assert made.names[0] == "p_match@120"


def test_an_evaluation_with_another_pool_size_is_marked_as_not_calibrated(fitted):
    few = evaluate(fitted, MAP, TEST[0][:100], TEST[1][:100])
    assert (few.pool, few.calibrated) == (100, False)
    topped_up = evaluate(fitted, MAP, TEST[0][:100], TEST[1][:100], (TRAIN[1],))
    assert (topped_up.pool, topped_up.calibrated) == (POOL, True)


def test_nine_rows_in_ten_are_above_the_cosine_bound_on_average_over_calibrations():
    """Conformal prediction guarantees marginal coverage, that is, coverage on average over calibration sets."""
    shares = []
    for seed in range(40):
        made = calibrate(MAP, DECOMPOSED, pairs(60, 100 + seed), pairs(60, 200 + seed), TRAIN[1], pool=POOL)
        assert made is not None
        shares.append(evaluate(made, MAP, *TEST).covered)
    assert 0.88 <= float(np.mean(shares)) <= 0.94


def test_calibration_on_hits_only_gives_high_probabilities_below_one():
    Y = TRAIN[0] @ torch.from_numpy(rotation(D_SOURCE, 5)).float()
    map = fit_ridge(moments((TRAIN[0], Y)), 1e-6)
    turn = torch.from_numpy(rotation(D_SOURCE, 5)).float()
    sides = [(X, X @ turn) for X, _ in (SELECT, HELD_OUT)]
    made = calibrate(map, decompose(moments((TRAIN[0], Y))), sides[0], sides[1], Y, pool=POOL)
    assert made is not None
    probability = made.measure(TEST[0], map(TEST[0]))[f"p_match@{POOL}"]
    assert 0.97 < float(probability.min()) <= float(probability.max()) < 1


# --- rows unlike the training data ------------------------------------------------------------------------------------

UNUSUAL = {
    "noise": torch.from_numpy(gaussian(400, D_SOURCE, 11)),
    "shuffled dimensions": TEST[0][:, torch.randperm(D_SOURCE, generator=torch.Generator().manual_seed(1))],
    "shifted rows": TEST[0] + 0.5 * torch.from_numpy(rotation(D_SOURCE, 1)[-1]).float(),
    "rows near the training mean": TRAIN[0].mean(0) + 0.02 * torch.from_numpy(gaussian(400, D_SOURCE, 12)),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_rows_unlike_the_training_data_get_a_low_p_typical(fitted, kind):
    usual, unusual = (measured(fitted, rows)["p_typical"] for rows in (TEST[0], UNUSUAL[kind]))
    score = auroc(usual, unusual)
    assert score is not None
    assert score >= 0.9


def test_p_typical_is_at_least_one_over_the_calibration_rows_plus_one(fitted):
    far = measured(fitted, -TRAIN[0].mean(0, keepdim=True))["p_typical"]
    assert far[0] == pytest.approx(1 / 301)


def test_rows_that_vary_in_a_constant_training_direction_get_a_low_p_typical():
    def flat(pairs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return normalise(torch.cat([pairs[0], torch.zeros(len(pairs[0]), 3)], dim=1), "unit"), pairs[1]

    train, select, held_out, test = map(flat, (TRAIN, SELECT, HELD_OUT, TEST))
    fitted = moments(train)
    linear = fit_ridge(fitted)
    made = calibrate(linear, decompose(fitted), select, held_out, train[1], pool=POOL)
    assert made is not None
    unusual = test[0].clone()
    unusual[:, -1] = 0.5
    unusual = normalise(unusual, "unit")
    assert float(made.measure(unusual, linear(unusual))["p_typical"].max()) <= 2 / 301


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gallery", "pool"), [(200, 50), (200, 200), (30, 12), (1000, 999)])
def test_the_hit_chance_is_the_share_of_random_pools_in_which_the_row_hits(gallery, pool):
    positions = torch.tensor([1, 5, 11, 20, 29])
    random = np.random.default_rng(0)
    for rank, chance in zip(positions.tolist(), hit_chance(positions, gallery, pool).tolist(), strict=True):
        ahead = np.array([np.sum(random.permutation(gallery - 1)[: pool - 1] < rank - 1) for _ in range(2000)])
        assert chance == pytest.approx((ahead < 10).mean(), abs=0.04)


@pytest.mark.parametrize(
    ("positive", "negative", "score"),
    [([3, 2], [1, 0], 1.0), ([0], [1], 0.0), ([1, 1], [1], 0.5), ([2, 0], [1], 0.5), ([], [1], None), ([1], [], None)],
)
def test_auroc_is_the_share_of_pairs_in_the_right_order(positive, negative, score):
    assert auroc(np.array(positive), np.array(negative)) == score


@pytest.mark.parametrize("law", ["normal", "exponential"])
@pytest.mark.parametrize("true", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("sizes", [(20, 20), (25, 200), (300, 300)])
def test_the_interval_of_an_auroc_contains_the_true_value_in_about_95_of_100_samples(law, true, sizes):
    random, n_positive, n_negative = np.random.default_rng(3), *sizes
    covered = 0
    for _ in range(400):
        if law == "normal":
            positive = random.normal(np.sqrt(2) * ndtri(true), 1, n_positive)
            negative = random.normal(0, 1, n_negative)
        else:  # P(positive > negative) = scale / (1 + scale)
            positive = random.exponential(true / (1 - true), n_positive)
            negative = random.exponential(1, n_negative)
        score = auroc(positive, negative)
        assert score is not None
        low, high = auroc_interval(score, n_positive, n_negative)
        covered += low <= true <= high
    assert 0.88 <= covered / 400 <= 1.0


def test_the_interval_of_an_auroc_stays_within_zero_to_one_and_has_a_width_at_both_ends():
    for score in (0.0, 0.02, 0.5, 0.98, 1.0):
        low, high = auroc_interval(score, 25, 40)
        assert 0 <= low <= score <= high <= 1
        assert high - low > 0.05
        assert auroc_interval(1 - score, 25, 40) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    wide, narrow = auroc_interval(0.7, 25, 40), auroc_interval(0.7, 2500, 4000)
    assert narrow[1] - narrow[0] == pytest.approx((wide[1] - wide[0]) / 10, rel=0.1)


def test_a_confidence_that_does_not_rank_hits_before_misses_is_not_usable(fitted):
    """With the targets in random order, whether a row hits does not depend on its source vector."""
    X, Y = TEST
    scores = evaluate(fitted, MAP, X, Y[torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))])
    assert scores.usable is False
    assert scores.reason is not None
    assert re.search(r"hits before misses better than chance: AUROC 0\.\d+ \[0\.[34]\d+, 0\.\d+\]", scores.reason)


@pytest.mark.parametrize("outcome", ["hits", "misses"])
def test_with_too_few_hits_or_misses_a_confidence_is_not_usable(fitted, outcome):
    X = TEST[0][:200]
    if outcome == "hits":
        scores = evaluate(fitted, MAP, X, torch.nn.functional.normalize(MAP(X), dim=1), (TRAIN[1],))
        assert scores.auroc is None
        assert scores.auroc_estimate is None
        counted = "p_match was tested on 200 hits and 0 misses; at least 20 of each are needed"
    else:
        scores = evaluate(fitted, MAP, X, -torch.nn.functional.normalize(MAP(X), dim=1), (TRAIN[1],))
        counted = "p_match was tested on 0 hits and 200 misses; at least 20 of each are needed"
    assert (scores.usable, scores.reason) == (False, counted)


@pytest.mark.parametrize("short", [0, 1])
def test_there_is_no_calibration_if_either_half_has_too_few_rows(short):
    halves = [HELD_OUT, SELECT]
    halves[short] = tuple(side[: LEAST_ROWS - 1] for side in halves[short])  # type: ignore[assignment]
    assert calibrate(MAP, DECOMPOSED, halves[1], halves[0], TRAIN[1]) is None
    halves[short] = tuple(side[:LEAST_ROWS] for side in (HELD_OUT, SELECT)[short])  # type: ignore[assignment]
    assert calibrate(MAP, DECOMPOSED, halves[1], halves[0], TRAIN[1]) is not None


def test_the_same_pairs_give_the_same_calibration(fitted):
    again = calibrate(MAP, DECOMPOSED, SELECT, HELD_OUT, TRAIN[1], pool=POOL)
    assert again is not None
    for name, tensor in fitted.tensors().items():
        assert torch.equal(tensor, getattr(again, name))


def test_a_calibration_can_be_rebuilt_from_its_tensors(fitted):
    again = calibration_from_tensors({"pool": fitted.pool, "level": fitted.level}, fitted.tensors())
    for name, values in measured(fitted, TEST[0]).items():
        np.testing.assert_array_equal(measured(again, TEST[0])[name], values)


def test_one_held_out_pair_is_too_few_to_evaluate_a_confidence(fitted):
    with pytest.raises(InputError, match="At least 2 held-out pairs are needed to evaluate a confidence; got 1"):
        evaluate(fitted, MAP, TEST[0][:1], TEST[1][:1])


BROKEN = {
    "a pool of zero": ({"pool": 0}, "`pool` of a calibration must be an integer above 1"),
    "a pool of text": ({"pool": "1000"}, "`pool` of a calibration must be an integer above 1"),
    "a level beyond one": ({"level": 1.5}, "`level` a number between 0 and 1"),
    "a short mean": ({"mean": torch.zeros(D_SOURCE - 1)}, "`project` of a calibration must be float32 of shape"),
    "integer weights": (
        {"match": torch.zeros(4, dtype=torch.int64)},
        "`match` of a calibration must be float32 of shape",
    ),
    "too few weights": ({"cosine": torch.zeros(3)}, "`cosine` of a calibration must be float32 of shape"),
    "NaN": ({"centre": torch.full((4,), torch.nan)}, "`centre` of a calibration must be finite"),
    "a scale of zero": ({"scale": torch.zeros(4)}, "`scale` positive ones"),
    "descending distances": ({"atypical": torch.arange(30.0).flip(0)}, "ascending numbers"),
    "too few calibration rows": ({"atypical": torch.arange(3.0)}, "at least 20 ascending numbers"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_invalid_parts_of_a_calibration_are_refused(fitted, how):
    changes, message = BROKEN[how]
    with pytest.raises(InputError, match=message):
        replace(fitted, **changes)


def test_the_cosine_bound_of_99_rows_is_their_tenth_smallest_margin():
    held_out = HELD_OUT[0][:99], HELD_OUT[1][:99]
    made = calibrate(MAP, DECOMPOSED, SELECT, held_out, TRAIN[1], POOL)
    assert made is not None
    with torch.no_grad():
        raw = MAP(held_out[0])
    lower = made.measure(held_out[0], raw)["cosine_lower"]
    cosine = torch.nn.functional.cosine_similarity(raw, held_out[1])
    assert int((cosine < lower - 1e-5).sum()) == 9
