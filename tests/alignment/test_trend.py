import itertools
import json
from typing import Any

import numpy as np
import pytest
from helpers.model_scores import NAN, additive, models, symmetric
from scipy.stats import spearmanr

from repstitch.alignment.hypothesis_results import Trend
from repstitch.alignment.model_scores import Resampling
from repstitch.alignment.trend import trend
from repstitch.errors import InputError


def spearman(a, b) -> float:
    return float(np.asarray(spearmanr(a, b))[0])


def rising(values, scores, permutations: int = 999, draws: int = 200, **kwargs) -> Trend:
    kwargs = {"column": "size", "metric": "mutual_knn", "resampling": Resampling(permutations, draws)} | kwargs
    return trend(scores, values, models(len(values)), **kwargs)


def within_families(found: Trend) -> dict[str, Any]:
    assert found.within_lineage is not None
    return found.within_lineage


def test_alignment_that_always_rises_has_rank_correlation_one_and_the_least_p():
    sizes = 10.0 ** np.arange(10)
    found = rising(sizes, additive(np.arange(10)))
    assert found.rank_correlation.score == pytest.approx(1)
    assert found.p == 1 / 1000
    assert found.rank_correlation.interval == pytest.approx((1 - 3 / 10 * 2, 1))
    assert found.verdict.startswith("alignment rises with size (rho = 1.00")
    falling = rising(sizes[::-1], additive(np.arange(10)))
    assert falling.rank_correlation.score == pytest.approx(-1)
    assert falling.p == 1 / 1000
    assert falling.verdict.startswith("alignment falls with size (rho = -1.00")


def test_the_correlation_is_spearmans_of_the_mean_score_with_the_others():
    S, values = symmetric(9), [3.0, 1, 1, 7, 5, 2, 8, 2, 6]
    alignment = [np.mean([S[i, j] for j in range(9) if j != i]) for i in range(9)]
    found = rising(values, S)
    assert [m.alignment for m in found.models] == pytest.approx(alignment)
    assert found.rank_correlation.score == pytest.approx(spearman(values, alignment))
    low, high = found.rank_correlation.interval or (0, 0)
    assert -1 <= low < found.rank_correlation.score < high <= 1


def test_with_five_models_p_is_that_of_all_orders():
    S, values = symmetric(5, seed=3), [1.0, 2, 3, 4, 5]
    found = rising(values, S, permutations=20_000)
    y = [m.alignment for m in found.models]
    every = [abs(spearman(order, y)) for order in itertools.permutations(values)]
    exact = np.mean(np.array(every) >= abs(found.rank_correlation.score) - 1e-9)
    assert found.p == pytest.approx(exact, abs=0.02)


def test_without_a_trend_p_is_small_no_more_often_than_it_says():
    small = [rising(np.arange(8.0), symmetric(8, seed), permutations=99, draws=1).p <= 0.05 for seed in range(200)]
    assert np.mean(small) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_table_without_a_trend_says_that_no_convergence_was_found():
    found = rising(np.arange(8.0), symmetric(8, seed=1))
    assert found.p > 0.05
    assert found.verdict.startswith("no significant trend of alignment with size (rho = ")


def test_both_directions_of_a_score_are_averaged_and_the_diagonal_is_ignored():
    S = symmetric(6)
    lopsided = S + np.triu(np.full((6, 6), 0.1), 1) - np.tril(np.full((6, 6), 0.1), -1) + 5 * np.eye(6)
    for one, other in zip(rising(range(6), S).models, rising(range(6), lopsided).models, strict=True):
        assert one.alignment == pytest.approx(other.alignment)


def test_scores_that_were_not_measured_are_left_out_of_the_mean():
    S = additive(np.arange(7.0))
    S[0, 1] = NAN  # the other direction is there
    whole = rising(range(7), additive(np.arange(7.0)))
    assert rising(range(7), S).models == whole.models
    S[1, 0] = NAN
    assert rising(range(7), S).models[0].alignment == pytest.approx(S[0, 2:].mean())
    S[0], S[:, 0] = NAN, NAN
    found = rising(range(7), S)
    assert found.left_out == {"no value": 0, "no score": 1}
    assert [m.name for m in found.models] == models(7)[1:]


def test_models_without_a_value_are_counted_and_still_score_the_others():
    S = symmetric(8)
    found = rising([1, 2, None, 4, NAN, 6, 7, 8], S)
    assert found.n_models == 6
    assert found.left_out == {"no value": 2, "no score": 0}
    assert found.models[0].alignment == pytest.approx(S[0, 1:].mean())


def test_models_to_align_with_are_no_points_themselves():
    S = symmetric(8)
    found = rising(np.arange(8.0), S, against=["m6", "m7"])
    assert [m.name for m in found.models] == models(6)
    assert [m.alignment for m in found.models] == pytest.approx(S[:6, 6:].mean(1))
    assert found.against == ["m6", "m7"]


def test_a_difference_between_families_is_no_trend_within_them():
    random = np.random.default_rng(0)
    values = np.repeat([1.0, 10, 100], 6) + np.tile(random.random(6), 3)
    strengths = np.repeat([0.0, 1, 2], 6) + 0.1 * random.random(18)
    families = [f"f{i // 6}" for i in range(18)]
    found = rising(values, additive(strengths), families=families)
    assert found.verdict.startswith("alignment rises with size")
    assert found.p <= 0.01
    within = within_families(found)
    assert within["p"] > 0.05
    assert within["families"] == {"f0": 6, "f1": 6, "f2": 6}
    assert "within families there is no significant trend" in found.verdict
    assert rising(values, additive(strengths)).within_lineage is None


def test_a_trend_in_every_family_is_found_where_families_hide_it():
    values = np.tile([1.0, 2, 3, 4], 3) + np.repeat([0, 10, 20], 4)
    strengths = np.tile([0.1, 0.2, 0.3, 0.4], 3) - np.repeat([0, 1, 2], 4)
    found = rising(values, additive(strengths), families=[f"f{i // 4}" for i in range(12)])
    assert found.rank_correlation.score < 0
    assert within_families(found)["rank_correlation"] == pytest.approx(1)
    assert within_families(found)["p"] <= 0.01
    assert "within families alignment rises (rho = 1.00" in found.verdict


def test_within_families_p_counts_only_orders_inside_each_family():
    families = list("aaabbb")
    found = rising(range(6), additive([0, 1, 2, 0.5, 1.5, 2.5]), 9_999, families=families)
    # Of the 3! · 3! orders two are as extreme: both families rise, or both fall. Of all 6! it would be 2 in 90.
    assert within_families(found)["rank_correlation"] == pytest.approx(1)
    assert within_families(found)["p"] == pytest.approx(2 / 36, abs=0.01)


def test_models_alone_in_their_family_say_nothing_of_lineage():
    found = rising(range(8), symmetric(8), families=["a", "a", "a", "b", "b", "c", None, None])
    assert within_families(found)["families"] == {"a": 3, "b": 2}
    assert within_families(found)["n_models"] == 5
    assert found.models[0].family == "a"
    assert rising(range(8), symmetric(8), families=list("aabbccdd")).within_lineage is None


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_band_holds_lines_through_permuted_values_and_not_a_trend(scale):
    values = np.linspace(1, 9, 12) if scale == "linear" else 10 ** np.linspace(0, 4, 12)
    strengths = np.arange(12) / 12
    band = rising(values, additive(strengths)).null_band
    value, low, high, line = (np.array(band[key]) for key in ("value", "low", "high", "line"))
    assert band["scale"] == scale
    assert (value[0], value[-1]) == pytest.approx((values[0], values[-1]))
    assert (low <= high).all()
    assert line[-1] > high[-1]
    assert line[0] < low[0]
    alignment = [m.alignment for m in rising(values, additive(strengths)).models]
    assert line[[0, -1]] == pytest.approx([alignment[0], alignment[-1]])  # the points lie on one line by themselves


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1, 2, 3, 4, None, None]}, "at least 5 models that have a score and a value of 'size'; got 4"),
        ({"values": [2.0] * 6}, "The values of 'size' must differ between models; all are 2"),
        ({"values": [1, 2, 3]}, r"`values` must have one entry per name \(6\); got 3"),
        ({"scores": np.ones((6, 6))}, "The alignment scores must differ"),
        ({"scores": np.ones((6, 5))}, r"`scores` must have shape \(6, 6\), one row per name; got \(6, 5\)"),
        ({"scores": np.full((6, 6), np.inf)}, "`scores` must be finite, or NaN where a pair was not scored"),
        ({"names": ["m0", *models(5)]}, "`names` must be unique; 'm0' appears twice"),
        ({"against": ["m0", "mx"]}, "`against` must be one or more of m0, m1, m2, m3, m4, m5; got 'mx'"),
        ({"against": []}, "`against` must be one or more of m0, m1, m2, m3, m4, m5; got 'none'"),
        ({"families": ["a"]}, r"`families` must have one entry per name \(6\); got 1"),
    ],
)
def test_a_trend_that_cannot_be_judged_is_refused(change, message):
    given = {"scores": symmetric(6), "values": list(range(6)), "names": models(6), "column": "size", "metric": "cka"}
    with pytest.raises(InputError, match=message):
        trend(**given | change)


@pytest.mark.parametrize("argument", ["permutations", "draws"])
def test_models_are_permuted_and_drawn_at_least_once(argument):
    with pytest.raises(InputError, match=f"`{argument}` must be at least 1; got 0"):
        Resampling(**{argument: 0})
    assert getattr(Resampling(**{argument: 200_000}), argument) == 200_000


def test_a_trend_is_plain_json():
    found = rising([1, 2, None, 4, 5, 6, 7, 8], symmetric(8), families=list("aaaabbbb"), against=["m7"])
    values = found.to_dict()
    assert Trend.from_dict(json.loads(json.dumps(values, allow_nan=False))) == found
    assert values["verdict"].endswith(".")
    assert "\n" not in values["verdict"]
