import itertools
import json
from typing import Any

import numpy as np
import pytest
from helpers.model_scores import NAN, blocks, models, symmetric

from repstitch.alignment.hypothesis_results import Control
from repstitch.alignment.lineage_control import control
from repstitch.alignment.model_scores import Resampling
from repstitch.errors import InputError


def judged(scores, factors: dict, permutations: int = 499, **kwargs) -> Control:
    kwargs = {"metric": "mutual_knn", "resampling": Resampling(permutations)} | kwargs
    return control(scores, factors, models(len(scores)), **kwargs)


def between(found: Control) -> dict[str, Any]:
    """What is known of pairs without a shared label."""
    assert found.between_above_null is not None
    return found.between_above_null


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
    found = judged(S, {"family": labels}, permutations=999).factors["family"]["permanova"]
    F, r2 = plain_permanova(S, labels)
    assert (found["F"], found["r2"]) == pytest.approx((F, r2))
    every = [plain_permanova(S, list(order))[0] for order in set(itertools.permutations(labels))]
    assert found["p"] == pytest.approx(np.mean(np.array(every) >= F - 1e-9), abs=0.06)
    assert found["least_p"] == pytest.approx(max({"aabbbbc": 1 / 105, "abababa": 1 / 35}["".join(labels)], 1e-3))


def test_mantel_is_the_correlation_of_score_with_sharing_a_label():
    S = blocks(FAMILY, strengths=[0.1], noise=0.2)
    found = judged(S, {"family": FAMILY}).factors["family"]
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
    assert found.factors["family"]["permanova"]["p"] <= 0.01
    assert found.factors["family"]["mantel"]["p"] <= 0.01
    assert between(found)["share"] == 0
    assert between(found)["above"] is False
    assert found.verdict.startswith("monoculture: shared family explains the agreement")


def test_models_of_different_lineage_that_agree_beyond_chance_are_no_monoculture():
    S = blocks(FAMILY, strengths=[0.3], base=0.2)
    found = judged(S, {"family": FAMILY}, null=np.full((12, 12), 0.01), q=np.full((12, 12), 0.02))
    across = between(found)
    assert across["pairs"] == 48
    assert across["excess"] == pytest.approx(across["score"] - 0.01)
    assert across["interval"][0] > 0
    assert across["share"] == 1
    assert across["above"] is True
    assert found.verdict.startswith("shared family explains part of the agreement")
    assert "but models of different lineage still agree beyond chance" in found.verdict


def test_agreement_of_all_with_all_is_not_put_down_to_lineage():
    S = 0.4 + 0.1 * symmetric(12, seed=2)
    found = judged(S, {"family": FAMILY}, null=np.full((12, 12), 0.01))
    assert found.factors["family"]["permanova"]["p"] > 0.05
    assert found.verdict.startswith("shared lineage has no significant effect on agreement")
    assert "and models of different lineage agree beyond chance (mean score" in found.verdict


def test_few_models_of_which_some_agree_with_nobody_leave_the_question_undecided():
    """A third of the pairs of different lineage agree far above chance, but six models give a wide interval."""
    S = np.full((6, 6), 0.5)
    S[:2, 2:] = S[2:, :2] = 0.02
    found = judged(S, {"family": list("aabbcc")}, null=np.full((6, 6), 0.01), q=np.where(S > 0.1, 0.01, 0.5))
    across = between(found)
    assert across["above"] is False
    assert across["interval"][0] <= 0 < across["excess"]
    assert found.verdict.startswith("undecided: 6 models are too few to tell whether models of different lineage agree")
    assert f"above chance by {across['excess']:.3f} [" in found.verdict


def test_agreement_of_nobody_is_no_convergence():
    noise = 0.01 * (symmetric(12, seed=2) - 0.5)
    found = judged(0.01 + noise, {"family": FAMILY}, null=np.full((12, 12), 0.01), q=np.ones((12, 12)))
    assert found.verdict.startswith("no convergence: models of different lineage do not agree beyond chance")
    assert "shared lineage has no significant effect on agreement" in found.verdict


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
        above.append(between(found)["interval"][0] > 0)
    assert np.mean(above) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs) + 0.01  # Student's t is an approximation here


def test_a_pair_measured_both_ways_is_significant_only_where_both_are():
    q = np.where(np.tri(12, dtype=bool), 0.01, 0.06)
    found = between(judged(blocks(FAMILY, strengths=[0.3]), {"family": FAMILY}, q=q))
    assert (found["pairs"], found["share"], found["above"]) == (48, 0.0, False)
    q[q > 0.05] = 0.02
    assert between(judged(blocks(FAMILY, strengths=[0.3]), {"family": FAMILY}, q=q))["share"] == 1.0


def test_pairs_that_all_share_one_model_have_no_interval_over_models():
    S = 0.4 + 0.1 * symmetric(5, seed=2)
    chance: dict[str, Any] = {"null": np.full((5, 5), 0.01)}
    assert judged(S, {"family": list("aaaab")}, **chance).between_above_null is None
    found = between(judged(S, {"family": list("aaaab")}, **chance, q=np.full((5, 5), 0.01)))
    assert found["interval"] is None
    assert found["above"] is True
    assert found["pairs"] == 4


def test_without_a_null_the_verdict_says_that_chance_was_not_tested():
    found = judged(blocks(FAMILY, strengths=[0.3]), {"family": FAMILY})
    assert found.between_above_null is None
    assert found.verdict.endswith("whether models of different lineage agree beyond chance was not tested.")


def test_factors_that_leave_no_pair_apart_cannot_be_told_from_convergence():
    factors = {"family": list("aabb"), "objective": list("abab"), "data": list("abba")}
    found = judged(symmetric(4), factors, null=np.zeros((4, 4)))
    assert found.between_above_null is None
    assert "no two models have different labels in every factor" in found.verdict


def test_too_few_models_are_said_to_be_too_few():
    found = judged(blocks(list("aabb"), strengths=[0.5]), {"family": list("aabb")}, null=np.zeros((4, 4)))
    assert found.factors["family"]["permanova"]["least_p"] == pytest.approx(1 / 3)
    assert found.verdict.startswith("4 models are too few to test whether shared lineage explains agreement")


def test_without_an_effect_p_is_small_no_more_often_than_it_says():
    factors = {"family": list("aaabbbcc"), "objective": list("abababab")}
    runs = [judged(symmetric(8, seed), factors, permutations=99).factors["family"] for seed in range(200)]
    for test in ("permanova", "mantel", "partial_mantel"):
        assert np.mean([run[test]["p"] <= 0.05 for run in runs]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_the_effect_of_a_factor_vanishes_when_a_control_is_its_copy():
    renamed = [label.upper() for label in FAMILY]
    found = judged(blocks(FAMILY, strengths=[0.4]), {"family": FAMILY, "objective": renamed}).factors
    for name, other in (("family", "objective"), ("objective", "family")):
        assert found[name]["mantel"]["p"] <= 0.01
        assert found[name]["partial_mantel"] == {"r": 0.0, "p": 1.0, "given": [other], "n_models": 12}


def test_a_factor_that_only_follows_another_has_no_effect_given_that():
    cause, follower = list("aaaaaabbbbbb"), list("aaaaabbbbbba")
    found = judged(blocks(cause, strengths=[0.4], noise=0.1), {"family": cause, "data": follower}).factors
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
    found = judged(S, factors).factors["family"]["partial_mantel"]
    assert found["r"] == pytest.approx(np.corrcoef(left[0], left[1])[0, 1])
    assert found["given"] == ["objective", "data"]


def test_models_of_unknown_lineage_are_left_out_of_that_factor_alone():
    labels = [*FAMILY[:10], None, None]
    S = blocks(FAMILY, strengths=[0.3])
    found = judged(S, {"family": labels, "objective": list("abababababab")}, null=np.zeros((12, 12)))
    assert found.factors["family"]["unknown"] == 2
    assert found.factors["family"]["n_models"] == 10
    assert found.factors["objective"]["n_models"] == 12
    assert found.factors["objective"]["partial_mantel"]["n_models"] == 10
    alone = judged(S[:10, :10], {"family": labels[:10]}).factors["family"]
    assert found.factors["family"]["permanova"] == alone["permanova"]


def test_models_that_miss_scores_are_left_out_by_name():
    S = blocks(FAMILY, strengths=[0.3])
    S[3, 5:] = S[5:, 3] = NAN
    found = judged(S, {"family": FAMILY})
    assert found.left_out == ["m3"]
    assert found.n_models == 11
    assert found.factors["family"]["groups"] == {"a": 3, "b": 4, "c": 4}


def test_a_factor_that_cannot_be_judged_is_reported_beside_those_that_can():
    factors = {"family": FAMILY, "data": ["web"] * 12, "name": models(12), "license": ["x", "y", *[None] * 10]}
    found = judged(blocks(FAMILY, strengths=[0.3]), factors)
    assert list(found.factors) == ["family"]
    assert found.cannot_be_judged == {
        "data": "all models belong to one group",
        "name": "every model has a different label",
        "license": "only 2 models have a label, and at least 4 must have one",
    }


def test_groups_that_agree_perfectly_inside_have_no_finite_F():
    S = (np.array(FAMILY)[:, None] == np.array(FAMILY)).astype(float)
    found = judged(S, {"family": FAMILY}).factors["family"]["permanova"]
    assert found["F"] is None
    assert found["r2"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factors": {}}, "`factors` must contain at least one factor"),
        ({"factors": {"family": ["a"]}}, r"`factors\['family'\]` must have one entry per name \(6\); got 1"),
        ({"factors": {"family": ["a"] * 6}}, "at least two groups.*family: all models belong to one group"),
        ({"factors": {"family": models(6)}}, "family: every model has a different label. Add labels for more models"),
        ({"scores": np.full((6, 6), NAN)}, "at least 4 models with a score for every pair; got 1 of 6"),
        ({"null": np.ones((2, 2))}, r"`null` must have shape \(6, 6\)"),
        ({"q": np.ones((2, 2))}, r"`q` must have shape \(6, 6\)"),
    ],
)
def test_a_control_that_cannot_be_judged_is_refused(change, message):
    given = {"scores": symmetric(6), "factors": {"family": list("aaabbb")}, "names": models(6), "metric": "cka"}
    with pytest.raises(InputError, match=message):
        control(**given | change)


def test_a_control_is_plain_json():
    factors = {"family": list("aaaabbbb"), "data": list("abababab")}
    found = judged(symmetric(8), factors, null=np.zeros((8, 8)))
    values = found.to_dict()
    assert Control.from_dict(json.loads(json.dumps(values, allow_nan=False))) == found
    assert values["verdict"].endswith(".")
    assert "\n" not in values["verdict"]
