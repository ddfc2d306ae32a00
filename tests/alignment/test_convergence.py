import itertools
import json

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian, rotation, shared_latent, unrelated
from scipy.stats import spearmanr

from repstitch.alignment.asymmetry import asymmetry
from repstitch.alignment.lineage_control import control
from repstitch.alignment.trend import trend
from repstitch.errors import InputError
from repstitch.fit.closed_form import fit_ridge
from repstitch.metrics.moments import moments

NAN = float("nan")


def models(n: int) -> list[str]:
    return [f"m{i}" for i in range(n)]


def symmetric(n: int, seed: int = 0) -> np.ndarray:
    """Scores of models that have nothing to do with one another."""
    S = np.random.default_rng(seed).random((n, n))
    return (S + S.T) / 2


def additive(strengths) -> np.ndarray:
    """Scores in which each model aligns with all others as strongly as it is strong."""
    return np.add.outer(strengths, strengths) / 10


def blocks(*labelings, strengths, noise: float = 0.02, base: float = 0.1, seed: int = 0) -> np.ndarray:
    """Scores that are higher by a factor's strength for pairs that share its label."""
    n = len(labelings[0])
    S = base + noise * symmetric(n, seed)
    for labels, strength in zip(labelings, strengths, strict=True):
        S = S + strength * (np.array(labels)[:, None] == np.array(labels))
    return S


def spearman(a, b) -> float:
    return float(np.asarray(spearmanr(a, b))[0])


def rising(values, scores, **given) -> dict:
    given = {"column": "size", "metric": "mutual_knn", "permutations": 999, "draws": 200} | given
    return trend(scores, values, models(len(values)), **given)


def judged(scores, factors: dict, **given) -> dict:
    given = {"metric": "mutual_knn", "permutations": 499} | given
    return control(scores, factors, models(len(scores)), **given)


def compared(X, Y, **given) -> dict:
    return asymmetry(X, Y, **({"source": "A", "target": "B", "permutations": 19} | given))


# Trend


def test_alignment_that_always_rises_has_rank_correlation_one_and_the_least_p():
    sizes = 10.0 ** np.arange(10)
    found = rising(sizes, additive(np.arange(10)))
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["p"] == 1 / 1000
    assert found["interval"] == pytest.approx([1, 1])
    assert found["verdict"].startswith("alignment rises with size (rho = 1.00")
    falling = rising(sizes[::-1], additive(np.arange(10)))
    assert falling["rank_correlation"] == pytest.approx(-1)
    assert falling["p"] == 1 / 1000
    assert falling["verdict"].startswith("alignment falls with size (rho = -1.00")


def test_the_correlation_is_spearmans_of_the_mean_score_with_the_others():
    S, values = symmetric(9), [3.0, 1, 1, 7, 5, 2, 8, 2, 6]
    alignment = [np.mean([S[i, j] for j in range(9) if j != i]) for i in range(9)]
    found = rising(values, S)
    assert [m["alignment"] for m in found["models"]] == pytest.approx(alignment)
    assert found["rank_correlation"] == pytest.approx(spearman(values, alignment))
    low, high = found["interval"]
    assert -1 <= low < found["rank_correlation"] < high <= 1


def test_with_five_models_p_is_that_of_all_orders():
    S, values = symmetric(5, seed=3), [1.0, 2, 3, 4, 5]
    found = rising(values, S, permutations=20_000)
    y = [m["alignment"] for m in found["models"]]
    every = [abs(spearman(order, y)) for order in itertools.permutations(values)]
    exact = np.mean(np.array(every) >= abs(found["rank_correlation"]) - 1e-9)
    assert found["p"] == pytest.approx(exact, abs=0.02)


def test_without_a_trend_p_is_small_no_more_often_than_it_says():
    small = [rising(np.arange(8.0), symmetric(8, seed), permutations=99, draws=1)["p"] <= 0.05 for seed in range(200)]
    assert np.mean(small) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_a_table_without_a_trend_says_that_no_convergence_was_found():
    found = rising(np.arange(8.0), symmetric(8, seed=1))
    assert found["p"] > 0.05
    assert found["verdict"].startswith("no convergence found: alignment does not rise with size (rho = ")


def test_both_directions_of_a_score_are_averaged_and_the_diagonal_is_ignored():
    S = symmetric(6)
    lopsided = S + np.triu(np.full((6, 6), 0.1), 1) - np.tril(np.full((6, 6), 0.1), -1) + 5 * np.eye(6)
    for one, other in zip(rising(range(6), S)["models"], rising(range(6), lopsided)["models"], strict=True):
        assert one["alignment"] == pytest.approx(other["alignment"])


def test_scores_that_were_not_measured_are_left_out_of_the_mean():
    S = additive(np.arange(7.0))
    S[0, 1] = NAN  # the other direction is there
    whole = rising(range(7), additive(np.arange(7.0)))
    assert rising(range(7), S)["models"] == whole["models"]
    S[1, 0] = NAN
    assert rising(range(7), S)["models"][0]["alignment"] == pytest.approx(S[0, 2:].mean())
    S[0], S[:, 0] = NAN, NAN
    found = rising(range(7), S)
    assert found["left_out"] == {"no value": 0, "no score": 1}
    assert [m["name"] for m in found["models"]] == models(7)[1:]


def test_models_without_a_value_are_counted_and_still_score_the_others():
    S = symmetric(8)
    found = rising([1, 2, None, 4, NAN, 6, 7, 8], S)
    assert found["n_models"] == 6
    assert found["left_out"] == {"no value": 2, "no score": 0}
    assert found["models"][0]["alignment"] == pytest.approx(S[0, 1:].mean())


def test_models_to_align_with_are_no_points_themselves():
    S = symmetric(8)
    found = rising(np.arange(8.0), S, against=["m6", "m7"])
    assert [m["name"] for m in found["models"]] == models(6)
    assert [m["alignment"] for m in found["models"]] == pytest.approx(S[:6, 6:].mean(1))
    assert found["against"] == ["m6", "m7"]


def test_a_difference_between_families_is_no_trend_within_them():
    random = np.random.default_rng(0)
    values = np.repeat([1.0, 10, 100], 6) + np.tile(random.random(6), 3)
    strengths = np.repeat([0.0, 1, 2], 6) + 0.1 * random.random(18)
    families = [f"f{i // 6}" for i in range(18)]
    found = rising(values, additive(strengths), families=families)
    assert found["verdict"].startswith("alignment rises with size")
    assert found["p"] <= 0.01
    within = found["within_lineage"]
    assert within["p"] > 0.05
    assert within["families"] == {"f0": 6, "f1": 6, "f2": 6}
    assert "within families it shows no trend" in found["verdict"]
    assert rising(values, additive(strengths))["within_lineage"] is None


def test_a_trend_in_every_family_is_found_where_families_hide_it():
    values = np.tile([1.0, 2, 3, 4], 3) + np.repeat([0, 10, 20], 4)
    strengths = np.tile([0.1, 0.2, 0.3, 0.4], 3) - np.repeat([0, 1, 2], 4)
    found = rising(values, additive(strengths), families=[f"f{i // 4}" for i in range(12)])
    assert found["rank_correlation"] < 0
    assert found["within_lineage"]["rank_correlation"] == pytest.approx(1)
    assert found["within_lineage"]["p"] <= 0.01
    assert "within families it rises (rho = 1.00" in found["verdict"]


def test_models_alone_in_their_family_say_nothing_of_lineage():
    found = rising(range(8), symmetric(8), families=["a", "a", "a", "b", "b", "c", None, None])
    assert found["within_lineage"]["families"] == {"a": 3, "b": 2}
    assert found["within_lineage"]["n_models"] == 5
    assert found["models"][0]["family"] == "a"
    assert rising(range(8), symmetric(8), families=list("aabbccdd"))["within_lineage"] is None


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_band_holds_lines_through_permuted_values_and_not_a_trend(scale):
    values = np.linspace(1, 9, 12) if scale == "linear" else 10 ** np.linspace(0, 4, 12)
    strengths = np.arange(12) / 12
    band = rising(values, additive(strengths))["null_band"]
    value, low, high, line = (np.array(band[key]) for key in ("value", "low", "high", "line"))
    assert band["scale"] == scale
    assert (value[0], value[-1]) == pytest.approx((values[0], values[-1]))
    assert (low <= high).all()
    assert line[-1] > high[-1]
    assert line[0] < low[0]
    alignment = [m["alignment"] for m in rising(values, additive(strengths))["models"]]
    assert line[[0, -1]] == pytest.approx([alignment[0], alignment[-1]])  # the points lie on one line by themselves


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1, 2, 3, 4, None, None]}, "at least 5 models with a score to show a trend; got 4"),
        ({"values": [2.0] * 6}, "`values` of size must differ between models to show a trend; all are 2"),
        ({"values": [1, 2, 3]}, r"`values` must hold one entry a name \(6\); got 3"),
        ({"scores": np.ones((6, 6))}, "The alignments that `scores` give must differ"),
        ({"scores": np.ones((6, 5))}, r"`scores` must be \(6, 6\), one row a name; got \(6, 5\)"),
        ({"scores": np.full((6, 6), np.inf)}, "`scores` must be finite, or NaN where a pair was not measured"),
        ({"names": ["m0", *models(5)]}, "`names` must differ from one another; 'm0' is there twice"),
        ({"against": ["m0", "mx"]}, "`against` must name some of `names`; got 'mx'"),
        ({"against": []}, "`against` must name some of `names`; got 'none'"),
        ({"families": ["a"]}, r"`families` must hold one entry a name \(6\); got 1"),
        ({"permutations": 0}, "`permutations` must be at least 1; got 0"),
        ({"draws": 0}, "`draws` must be at least 1; got 0"),
    ],
)
def test_a_trend_that_cannot_be_judged_is_refused(change, message):
    given = {"scores": symmetric(6), "values": list(range(6)), "names": models(6), "column": "size", "metric": "cka"}
    with pytest.raises(InputError, match=message):
        trend(**given | change)


# Control

FAMILY = list("aaaabbbbcccc")


def plain_permanova(S: np.ndarray, labels: list) -> tuple[float, float]:
    """Pseudo-F and R² by Anderson's sums, pair by pair."""
    N, groups = len(labels), sorted(set(labels))
    total = sum((1 - S[i, j]) ** 2 for i in range(N) for j in range(i)) / N
    inside = 0.0
    for group in groups:
        members = [i for i in range(N) if labels[i] == group]
        inside += sum((1 - S[i, j]) ** 2 for i, j in itertools.combinations(members, 2)) / len(members)
    F = ((total - inside) / (len(groups) - 1)) / (inside / (N - len(groups)))
    return F, 1 - inside / total


@pytest.mark.parametrize("labels", [list("aabbbbc"), list("abababa")])
def test_permanova_is_what_a_plain_loop_over_pairs_and_permutations_gives(labels):
    S = symmetric(7, seed=4)
    found = judged(S, {"family": labels}, permutations=999)["factors"]["family"]["permanova"]
    F, r2 = plain_permanova(S, labels)
    assert (found["F"], found["r2"]) == pytest.approx((F, r2))
    every = [plain_permanova(S, list(order))[0] for order in set(itertools.permutations(labels))]
    assert found["p"] == pytest.approx(np.mean(np.array(every) >= F - 1e-9), abs=0.06)
    assert found["least_p"] == pytest.approx(max({"aabbbbc": 1 / 105, "abababa": 1 / 35}["".join(labels)], 1e-3))


def test_mantel_is_the_correlation_of_score_with_sharing_a_label():
    S = blocks(FAMILY, strengths=[0.1], noise=0.2)
    found = judged(S, {"family": FAMILY})["factors"]["family"]
    i, j = np.triu_indices(12, 1)
    same = np.array([FAMILY[a] == FAMILY[b] for a, b in zip(i, j, strict=True)])
    assert found["mantel"]["r"] == pytest.approx(np.corrcoef(S[i, j], same)[0, 1])
    assert found["within"] == pytest.approx(S[i, j][same].mean())
    assert found["between"] == pytest.approx(S[i, j][~same].mean())
    assert found["difference"] == pytest.approx(found["within"] - found["between"])
    assert found["groups"] == {"a": 4, "b": 4, "c": 4}
    assert found["partial_mantel"] is None


def test_a_planted_monoculture_is_called_one():
    S = blocks(FAMILY, strengths=[0.5], noise=0.0) - 0.1 + 0.01 * (symmetric(12) - 0.5)
    null = np.zeros((12, 12))
    q = np.where(np.array(FAMILY)[:, None] == np.array(FAMILY), 0.01, 0.6)
    found = judged(S, {"family": FAMILY}, null=null, q=q)
    assert found["factors"]["family"]["permanova"]["p"] <= 0.01
    assert found["factors"]["family"]["mantel"]["p"] <= 0.01
    assert found["between_above_null"]["share"] == 0
    assert found["between_above_null"]["above"] is False
    assert found["verdict"].startswith("monoculture: shared family explains what agreement there is")


def test_models_of_different_lineage_that_agree_beyond_chance_are_no_monoculture():
    S = blocks(FAMILY, strengths=[0.3], base=0.2)
    found = judged(S, {"family": FAMILY}, null=np.full((12, 12), 0.01), q=np.full((12, 12), 0.02))
    across = found["between_above_null"]
    assert across["pairs"] == 48
    assert across["excess"] == pytest.approx(across["score"] - 0.01)
    assert across["interval"][0] > 0
    assert across["share"] == 1
    assert across["above"] is True
    assert found["verdict"].startswith("shared family explains part of the agreement")
    assert "but models of different lineage still agree beyond chance" in found["verdict"]


def test_agreement_of_all_with_all_is_not_put_down_to_lineage():
    S = 0.4 + 0.1 * symmetric(12, seed=2)
    found = judged(S, {"family": FAMILY}, null=np.full((12, 12), 0.01))
    assert found["factors"]["family"]["permanova"]["p"] > 0.05
    assert found["verdict"].startswith("no effect of shared lineage on agreement was found")
    assert "and models of different lineage agree beyond chance (mean score" in found["verdict"]


def test_agreement_of_nobody_is_no_convergence():
    noise = 0.01 * (symmetric(12, seed=2) - 0.5)
    found = judged(0.01 + noise, {"family": FAMILY}, null=np.full((12, 12), 0.01), q=np.ones((12, 12)))
    assert found["verdict"].startswith("no convergence found: models of different lineage do not agree beyond chance")
    assert "no effect of shared lineage on agreement was found" in found["verdict"]


@pytest.mark.parametrize("labels", ["aabb", "aabbc", "aabbccd", "aaaaaaaaaabb"])
@pytest.mark.parametrize("strength", [0, 2], ids=["noise of pairs", "noise of models"])
def test_the_interval_over_few_models_lies_above_chance_no_more_often_than_it_says(labels, strength):
    N, runs, above = len(labels), 400, []
    for seed in range(runs):
        random = np.random.default_rng(seed)
        of_model = strength * random.standard_normal(N)
        noise = np.triu(random.standard_normal((N, N)), 1)
        S = 0.3 + 0.01 * (noise + noise.T + of_model[:, None] + of_model)
        found = judged(S, {"family": list(labels)}, permutations=1, null=np.full((N, N), 0.3))
        above.append(found["between_above_null"]["interval"][0] > 0)
    assert np.mean(above) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs) + 0.01  # Student's t is an approximation here


def test_pairs_that_all_share_one_model_have_no_interval_over_models():
    S = 0.4 + 0.1 * symmetric(5, seed=2)
    chance = {"null": np.full((5, 5), 0.01)}
    assert judged(S, {"family": list("aaaab")}, **chance)["between_above_null"] is None
    found = judged(S, {"family": list("aaaab")}, **chance, q=np.full((5, 5), 0.01))["between_above_null"]
    assert found["interval"] is None
    assert found["above"] is True
    assert found["pairs"] == 4


def test_without_a_null_the_verdict_says_that_chance_was_not_tested():
    found = judged(blocks(FAMILY, strengths=[0.3]), {"family": FAMILY})
    assert found["between_above_null"] is None
    assert found["verdict"].endswith("whether models of different lineage agree beyond chance was not tested.")


def test_factors_that_leave_no_pair_apart_cannot_be_told_from_convergence():
    factors = {"family": list("aabb"), "objective": list("abab"), "data": list("abba")}
    found = judged(symmetric(4), factors, null=np.zeros((4, 4)))
    assert found["between_above_null"] is None
    assert "no two models are known to differ in every factor" in found["verdict"]


def test_too_few_models_are_said_to_be_too_few():
    found = judged(blocks(list("aabb"), strengths=[0.5]), {"family": list("aabb")}, null=np.zeros((4, 4)))
    assert found["factors"]["family"]["permanova"]["least_p"] == pytest.approx(1 / 3)
    assert found["verdict"].startswith("4 models are too few to tell whether shared lineage explains agreement")


def test_without_an_effect_p_is_small_no_more_often_than_it_says():
    factors = {"family": list("aaabbbcc"), "objective": list("abababab")}
    runs = [judged(symmetric(8, seed), factors, permutations=99)["factors"]["family"] for seed in range(200)]
    for test in ("permanova", "mantel", "partial_mantel"):
        assert np.mean([run[test]["p"] <= 0.05 for run in runs]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_the_effect_of_a_factor_vanishes_when_a_control_is_its_copy():
    renamed = [label.upper() for label in FAMILY]
    found = judged(blocks(FAMILY, strengths=[0.4]), {"family": FAMILY, "objective": renamed})["factors"]
    for name, other in (("family", "objective"), ("objective", "family")):
        assert found[name]["mantel"]["p"] <= 0.01
        assert found[name]["partial_mantel"] == {"r": 0.0, "p": 1.0, "given": [other], "n_models": 12}


def test_a_factor_that_only_follows_another_has_no_effect_given_that():
    cause, follower = list("aaaaaabbbbbb"), list("aaaaabbbbbba")
    found = judged(blocks(cause, strengths=[0.4], noise=0.1), {"family": cause, "data": follower})["factors"]
    assert found["data"]["mantel"]["p"] <= 0.05
    assert found["data"]["partial_mantel"]["p"] > 0.05
    assert found["family"]["partial_mantel"]["p"] <= 0.01
    assert found["family"]["partial_mantel"]["given"] == ["data"]


def test_partial_mantel_is_the_correlation_of_residuals():
    factors = {"family": FAMILY, "objective": list("abcabcabcabc"), "data": list("abbaabbaabba")}
    S = blocks(FAMILY, factors["data"], strengths=[0.1, 0.2], noise=0.3)
    i, j = np.triu_indices(12, 1)
    same = {name: np.array([labels[a] == labels[b] for a, b in zip(i, j, strict=True)], dtype=float)
            for name, labels in factors.items()}  # fmt: skip
    Z = np.column_stack([np.ones(len(i)), same["objective"], same["data"]])
    left = [v - Z @ np.linalg.lstsq(Z, v, rcond=None)[0] for v in (S[i, j], same["family"])]
    found = judged(S, factors)["factors"]["family"]["partial_mantel"]
    assert found["r"] == pytest.approx(np.corrcoef(left[0], left[1])[0, 1])
    assert found["given"] == ["objective", "data"]


def test_models_of_unknown_lineage_are_left_out_of_that_factor_alone():
    labels = [*FAMILY[:10], None, None]
    S = blocks(FAMILY, strengths=[0.3])
    found = judged(S, {"family": labels, "objective": list("abababababab")}, null=np.zeros((12, 12)))
    assert found["factors"]["family"]["unknown"] == 2
    assert found["factors"]["family"]["n_models"] == 10
    assert found["factors"]["objective"]["n_models"] == 12
    assert found["factors"]["objective"]["partial_mantel"]["n_models"] == 10
    alone = judged(S[:10, :10], {"family": labels[:10]})["factors"]["family"]
    assert found["factors"]["family"]["permanova"] == alone["permanova"]


def test_models_that_miss_scores_are_left_out_by_name():
    S = blocks(FAMILY, strengths=[0.3])
    S[3, 5:] = S[5:, 3] = NAN
    found = judged(S, {"family": FAMILY})
    assert found["left_out"] == ["m3"]
    assert found["n_models"] == 11
    assert found["factors"]["family"]["groups"] == {"a": 3, "b": 4, "c": 4}


def test_a_factor_that_cannot_be_judged_is_reported_beside_those_that_can():
    factors = {"family": FAMILY, "data": ["web"] * 12, "name": models(12), "license": ["x", "y", *[None] * 10]}
    found = judged(blocks(FAMILY, strengths=[0.3]), factors)
    assert list(found["factors"]) == ["family"]
    assert found["cannot_be_judged"] == {
        "data": "all models are of one group",
        "name": "every model is its own group",
        "license": "only 2 models have a label, 4 are needed",
    }


def test_groups_that_agree_perfectly_inside_have_no_finite_F():
    S = (np.array(FAMILY)[:, None] == np.array(FAMILY)).astype(float)
    found = judged(S, {"family": FAMILY})["factors"]["family"]["permanova"]
    assert found["F"] is None
    assert found["r2"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {}}, "`factors` must hold at least one factor"),
        ({"factors": {"family": ["a"]}}, r"`factors\['family'\]` must hold one entry a name \(6\); got 1"),
        ({"factors": {"family": ["a"] * 6}}, "at least two groups.*family: all models are of one group"),
        ({"factors": {"family": models(6)}}, "family: every model is its own group. Label more models"),
        ({"scores": np.full((6, 6), NAN)}, "at least 4 models of which every pair was measured; got 1 of 6"),
        ({"null": np.ones((2, 2))}, r"`null` must be \(6, 6\)"),
        ({"q": np.ones((2, 2))}, r"`q` must be \(6, 6\)"),
        ({"permutations": 0}, "`permutations` must be at least 1; got 0"),
    ],
)
def test_a_control_that_cannot_be_judged_is_refused(change, message):
    given = {"scores": symmetric(6), "factors": {"family": list("aaabbb")}, "names": models(6), "metric": "cka"}
    with pytest.raises(InputError, match=message):
        control(**given | change)


# Asymmetry


def spread_out(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Rows whose dimensions vary by d, d − 1 … 1."""
    return (gaussian(n, d, seed) * np.sqrt(np.arange(d, 0, -1))).astype(np.float32)


def test_a_linear_image_of_lower_rank_is_predicted_and_does_not_predict_the_rest():
    X = spread_out(1500, 8)
    Y = (X[:, :3] @ rotation(3)).astype(np.float32)
    found = compared(X, Y)
    known = (8 + 7 + 6) / 36  # the share of the variance of X that Y holds
    assert found["r2_forward"] == pytest.approx(1, abs=1e-4)
    assert found["r2_backward"] == pytest.approx(known, abs=0.02)
    assert found["r2_backward_interval"][0] < known < found["r2_backward_interval"][1]
    assert found["difference_interval"][0] < 1 - known < found["difference_interval"][1]
    assert found["left_over"]["source"]["variance"] == pytest.approx(1 - found["r2_backward"])
    assert found["left_over"]["target"] == {"variance": pytest.approx(0, abs=1e-4), "directions": 3, "predicted": 3}
    assert found["left_over"]["source"]["predicted"] <= 4 < found["left_over"]["source"]["directions"]
    assert found["shared"]["above"] == 3
    assert found["verdict"].startswith("A predicts B better than the reverse: R² 1.000 against 0.5")
    assert "B lacks 4" in found["verdict"]


def test_the_other_way_round_the_same_is_said_of_the_other_side():
    X = spread_out(600, 6)
    Y = (X[:, :2] @ rotation(2)).astype(np.float32)
    ahead, back = compared(X, Y), compared(Y, X, source="B", target="A")
    assert back["r2_forward"] == pytest.approx(ahead["r2_backward"], abs=1e-4)
    assert back["difference"] == pytest.approx(-ahead["difference"], abs=1e-4)
    assert back["verdict"] == ahead["verdict"]


def test_a_rotated_scaled_and_moved_copy_is_predicted_both_ways():
    X = spread_out(300, 6)
    found = compared(X, (3 * X @ rotation(6) + 5).astype(np.float32))
    assert (found["r2_forward"], found["r2_backward"]) == pytest.approx((1, 1), abs=1e-4)
    again = compared(X @ rotation(6, 3).astype(np.float32), X)
    assert again["r2_forward"] == pytest.approx(found["r2_forward"], abs=1e-4)


def test_views_of_one_latent_predict_each_other_about_equally():
    latent = gaussian(800, 10)
    X, Y = (latent @ rotation(10, seed) + 0.5 * gaussian(800, 10, seed) for seed in (1, 2))
    found = compared(X, Y)
    assert found["verdict"].startswith("each predicts the other about equally: R² A → B is 0.")
    assert found["difference_interval"][0] < 0 < found["difference_interval"][1]
    assert found["r2_forward"] > found["null_forward"]["high"]


def test_unrelated_spaces_predict_nothing():
    runs = [compared(*unrelated(200, 12, 9, seed=seed)) for seed in range(20)]
    assert sum(run["verdict"].startswith("neither predicts the other") for run in runs) >= 17
    assert all(abs(run[f"r2_{way}"]) < 0.05 for run in runs for way in ("forward", "backward"))
    assert sum(run["left_over"][side]["predicted"] > 0 for run in runs for side in ("source", "target")) <= 5
    assert all(run["left_over"]["target"]["variance"] > 0.95 for run in runs)


def test_directions_that_are_not_predicted_are_not_counted_beside_those_that_are():
    X = gaussian(500, 20)
    Y = np.concatenate([3 * X[:, :5], gaussian(500, 10, seed=1)], axis=1)
    found = compared(X, Y)["left_over"]["target"]
    assert found["predicted"] == 5 < found["directions"]


def test_wide_spaces_of_few_rows_do_not_look_related():
    found = compared(*unrelated(80, 150, 120))
    assert found["verdict"].startswith("neither predicts the other")
    assert "fitted to 64 rows, no more than dimensions, so what A and B predicts is a lower bound" in found["verdict"]
    assert abs(found["r2_forward"]) < 0.05


def test_a_wide_space_of_few_rows_still_shows_what_it_shares():
    found = compared(*shared_latent(120, rank=2, d_source=200, d_target=8, noise=0.3))
    assert found["r2_forward"] > 0.8
    assert "so what A predicts is a lower bound" in found["verdict"]


def test_shuffled_pairs_fall_to_the_null():
    X, Y = shared_latent(400)
    found = compared(X, Y[np.random.default_rng(0).permutation(400)])
    assert found["r2_forward"] < 0.01
    assert found["verdict"].startswith("neither predicts the other")


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
    assert compared(X, Y, folds=4, seed=7)["r2_forward"] == pytest.approx(best, abs=0.01)


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
    assert compared(X, Y, seed=3)["null_forward"] != compared(X, Y, seed=4)["null_forward"]


@pytest.mark.parametrize(
    ("X", "Y", "given", "message"),
    [
        (gaussian(30, 3), gaussian(29, 3), {}, r"matrices of as many rows; got \(30, 3\) and \(29, 3\)"),
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


def test_all_three_answers_are_plain_json():
    answers = (
        rising([1, 2, None, 4, 5, 6, 7, 8], symmetric(8), families=list("aaaabbbb"), against=["m7"]),
        judged(symmetric(8), {"family": list("aaaabbbb"), "data": list("abababab")}, null=np.zeros((8, 8))),
        compared(*shared_latent(100)),
    )
    for answer in answers:
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
        assert answer["verdict"].endswith(".")
        assert "\n" not in answer["verdict"]
