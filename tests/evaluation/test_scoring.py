import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scorecards import scorecard_of
from helpers.spaces import gaussian, rotated, shared_latent, unrelated

from repstitch.errors import InputError
from repstitch.evaluation import scoring as module
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import hubness, mrr, ranks
from repstitch.names import USES


def unit_rows(X: np.ndarray) -> np.ndarray:
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def score(X, Y, translated, **settings) -> dict[str, Any]:
    """Return the scorecard as JSON, with 20 permutations by default."""
    return scorecard_of(X, Y, translated, **{"permutations": 20, **settings}).to_dict()


def table(card: dict[str, Any]) -> str:
    return Scorecard.from_dict(card).table()


def exact(n: int = 200) -> dict:
    """Return the scorecard of an exact translation."""
    X, Y, R = rotated(n)
    X, Y = unit_rows(X), unit_rows(Y)
    return score(X, Y, X @ R)


def test_an_exact_translation_is_perfect_for_both_uses():
    card = exact()
    for use in USES:
        scores = card[use]
        assert [scores["recall@1"], scores["recall@10"], scores["mrr"], scores["median_rank"]] == [1, 1, 1, 1]
        assert scores["overlap@10"] == pytest.approx(1, abs=1e-3)
    rec = card["reconstruction"]
    assert [rec["cosine"], rec["r2"], rec["norm_ratio"]] == pytest.approx([1, 1, 1], abs=1e-5)
    assert card["alignment"]["mutual_knn"]["after"]["score"] == pytest.approx(1, abs=1e-3)
    assert card["alignment"]["cka_unbiased"]["after"]["score"] == pytest.approx(1, abs=1e-6)
    for metric in card["alignment"].values():
        assert metric["after"]["p"] == pytest.approx(1 / 21)


def test_shuffled_pairs_score_at_chance():
    n, draws = 100, 20
    recalls = {(use, r): [] for use in USES for r in (1, 5, 10)}
    for seed in range(draws):
        X, Y, R = rotated(n, seed=seed)
        card = score(X, Y, X @ R, permutations=1, seed=seed)
        for use, r in recalls:
            recalls[use, r].append(card[use]["shuffled"][f"recall@{r}"])
    for (_, r), values in recalls.items():
        assert abs(np.mean(values) - r / n) < 4 * np.sqrt(r / n * (1 - r / n) / (n * draws))


def test_an_unrelated_translation_scores_at_chance_on_every_measure():
    X, _ = unrelated(400, 8, 8)
    Y, T = unrelated(400, 8, 8, seed=5)
    card = score(X, Y, T, permutations=99)
    for use in USES:
        assert card[use]["recall@10"] < 10 / 400 + 4 * np.sqrt(10 / 400 / 400)
        assert abs(card[use]["overlap@10"] - 10 / 399) < 0.02
    for metric in card["alignment"].values():
        assert metric["after"]["p"] > 0.02
        assert metric["after"]["calibrated"] < 0.05


def test_a_constant_translation_has_the_cosine_of_the_floor_and_an_r2_of_zero():
    X, Y = shared_latent(300)
    floor = Y.mean(0)
    constant = np.broadcast_to(floor, Y.shape)
    card = score(X, Y, constant, training_mean=floor)
    rec = card["reconstruction"]
    assert rec["cosine"] == pytest.approx(rec["cosine_floor"], abs=1e-6)
    assert rec["r2"] == pytest.approx(0, abs=1e-5)
    assert rec["norm_ratio"] == pytest.approx(0, abs=1e-5)
    for use in USES:
        assert card[use]["recall@10"] <= 10 / 300 + 0.02
    assert "`translated` has only 1 different directions" in card["alignment"]["mutual_knn"]["after"]["refused"]
    assert "must vary" in card["alignment"]["cka_unbiased"]["after"]["refused"]
    text = table(card)
    assert "mutual_knn not scored: `translated` has only 1" in text
    assert "cka_unbiased not scored: `X` must vary" in text


def test_the_error_on_repeated_source_rows_names_the_source():
    X, Y = shared_latent(60)
    card = score(np.ones_like(X), Y, Y)
    assert "`source` has only 1 different directions" in card["alignment"]["mutual_knn"]["before"]["refused"]
    assert card["alignment"]["mutual_knn"]["after"]["score"] == 1


def test_the_uses_swap_queries_and_gallery():
    X, Y, T = gaussian(150, 6), gaussian(150, 5, 1), gaussian(150, 5, 2)
    T = Y + 0.7 * T
    there, back = score(X, Y, T), score(X, T, Y)
    for key in ("recall@1", "recall@5", "mrr", "median_rank"):
        assert there["query"][key] == pytest.approx(back["corpus"][key])
        assert there["corpus"][key] == pytest.approx(back["query"][key])


def test_query_use_translates_the_queries_and_corpus_use_translates_the_gallery():
    X, Y = shared_latent(150)
    y, t = (torch.from_numpy(side) for side in (Y, Y + 3 * gaussian(150, 10, 2)))
    card = score(X, Y, t.numpy())
    for use, (queries, gallery) in {"query": (t, y), "corpus": (y, t)}.items():
        assert card[use]["mrr"] == pytest.approx(mrr(ranks(queries, gallery)))
        lists, native = knn(queries, gallery, 10, exclude_self=True), knn(y, y, 10, exclude_self=True)
        assert card[use]["overlap@10"] == pytest.approx(float(overlap(lists, native).mean()))
        assert card[use]["hubness_skew"] == pytest.approx(hubness(lists, 150))
    assert card["query"]["mrr"] != card["corpus"]["mrr"]


def test_r2_is_computed_from_the_raw_map_output_and_cosine_from_the_translation():
    X, Y, _ = rotated(200)
    card = score(X, Y, unit_rows(Y), raw=0.5 * Y)
    assert card["reconstruction"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert card["reconstruction"]["norm_ratio"] == pytest.approx(0.5, abs=1e-6)
    assert card["reconstruction"]["r2"] == pytest.approx(1 - 0.25 * np.square(Y).sum() / np.square(Y - Y.mean(0)).sum())


def test_the_scorecard_is_plain_json_with_the_documented_keys():
    card = exact()
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    named = {"n", "pool", "k", "chance", "hubness_native", "query", "corpus", "reconstruction", "alignment"}
    assert set(card) == named
    assert (card["n"], card["pool"], card["k"]) == (200, 200, 10)
    assert card["chance"] == {"recall@1": 1 / 200, "recall@5": 5 / 200, "recall@10": 10 / 200}
    keys = {"recall@1", "recall@5", "recall@10", "mrr", "median_rank", "overlap@10", "hubness_skew", "shuffled"}
    keys |= {"intervals", "constant", "naive", "references", "verdict"}
    assert set(card["query"]) == set(card["corpus"]) == keys
    assert set(card["reconstruction"]) == {"cosine", "cosine_floor", "r2", "norm_ratio"}
    assert set(card["alignment"]["cka_unbiased"]["before"]) == {"score", "null", "p", "calibrated"}


def test_the_same_seed_gives_the_same_scorecard():
    X, Y = shared_latent(100, d_target=12)
    assert score(X, Y, Y + 0.1 * X) == score(X, Y, Y + 0.1 * X)


@pytest.mark.parametrize("uses", [("query",), ("corpus",), ("corpus", "query"), ()])
def test_only_the_requested_uses_are_scored(uses):
    X, Y = shared_latent(100)
    card = score(X, Y, Y, uses=uses)
    assert {use for use in USES if use in card} == set(uses)
    header = next(line for line in table(card).splitlines() if line.startswith("100 held-out pairs"))
    assert [word for word in header.split() if word in USES] == [use for use in USES if use in uses]


def test_an_unknown_use_is_refused():
    X, Y = shared_latent(100)
    with pytest.raises(InputError, match="`uses` must be among query, corpus; got 'query', 'both'"):
        score(X, Y, Y, uses=("query", "both"))


def test_the_pool_is_capped_at_random_rows_of_a_fixed_seed(monkeypatch):
    X, Y, R = rotated(200)
    Y[:100] = gaussian(100, 8, 9)  # a translation that is right for the second half only
    monkeypatch.setattr(module, "MAX_POOL", 50)
    card = score(X, Y, X @ R)
    assert (card["n"], card["pool"], card["chance"]["recall@1"]) == (200, 50, 1 / 50)
    assert 0.2 < card["query"]["recall@1"] < 0.8
    assert card == score(X, Y, X @ R)
    assert card["query"] != score(X, Y, X @ R, seed=1)["query"]
    assert "200 held-out pairs, pool of 50" in table(card)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 11, 12])
def test_tiny_test_sets_get_every_score_that_is_defined(n):
    X, Y, R = rotated(n)
    card = score(X, Y, X @ R)
    json.dumps(card, allow_nan=False)
    assert card["k"] == min(10, n - 1)
    assert card["chance"]["recall@10"] == min(1.0, 10 / n)
    assert card["query"]["recall@1"] == 1
    assert f"{n} held-out pairs, pool of {n}" in table(card)
    if n < 4:
        assert "at least 4" in card["alignment"]["cka_unbiased"]["after"]["refused"]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_pairs_are_refused(n):
    X, Y = shared_latent(20)
    with pytest.raises(InputError, match=f"At least 2 held-out pairs are needed to score; got {n}"):
        score(X[:n], Y[:n], Y[:n], training_mean=Y.mean(0))


def test_target_rows_that_are_all_the_same_are_refused():
    X, Y = shared_latent(20)
    with pytest.raises(InputError, match="The 20 held-out target rows are all equal, so nothing can be scored"):
        score(X, np.ones_like(Y), Y)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_translation_with_zero_rows_or_rows_that_are_not_finite_is_refused(bad):
    X, Y = shared_latent(40)
    T = Y.copy()
    T[3] = bad
    with pytest.raises(InputError, match="Rows must be finite and not all zeros"):
        score(X, Y, T)


def test_the_table_shows_pool_floor_chance_and_control_next_to_the_scores():
    X, Y = shared_latent(120)
    card = score(X, Y, Y + 0.5 * gaussian(120, 10, 7))
    text = table(card | {"held_out": "test pairs"})
    floor = f"(a constant translation: {card['reconstruction']['cosine_floor']:.3f})"
    for part in ("120 test pairs, pool of 120", "query", "corpus", "chance", floor, "shuffled pairs, recall@10"):
        assert part in text
    for use in USES:
        assert f"{card[use]['recall@1']:.3f}" in text
    assert f"{card['alignment']['mutual_knn']['after']['null']:.3f}" in text
    assert "  0.048" in text  # p of 20 permutations


def test_a_translation_of_all_rows_to_one_vector_has_no_recall_in_either_use():
    X, Y = shared_latent(100)
    card = score(X, Y, np.ones_like(Y))
    for use in USES:
        assert card[use]["recall@1"] <= 0.01
        assert card[use]["shuffled"]["recall@1"] <= 0.01


def test_identical_target_rows_are_hits_for_one_another_in_both_uses():
    X, Y, R = rotated(100)
    X[50:], Y[50:] = X[:50], Y[:50]
    card = score(X, Y, X @ R + 1e-3 * gaussian(100, 8, 5))
    for use in USES:
        assert card[use]["recall@1"] == 1


# --- references, intervals, verdicts ----------------------------------------------------------------------------------


def neighbours(X: np.ndarray) -> torch.Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float32))
    return knn(rows, rows, 10, exclude_self=True)


@pytest.mark.parametrize("use", ["query", "corpus"])
def test_the_old_shortlist_in_the_order_of_the_new_model_has_the_true_neighbours_that_it_contains(use):
    X, Y = shared_latent(300, rank=6, d_source=12, d_target=10, noise=0.8)
    card = scorecard_of(X, Y, Y)
    old, new = (similar_to_others(rows) for rows in ((X, Y) if use == "corpus" else (Y, X)))
    shares = []
    for row in range(300):
        shortlist = np.argsort(-old[row])[:100]
        first = shortlist[np.argsort(-new[row][shortlist])[:10]]
        shares.append(len(set(first) & set(np.argsort(-new[row])[:10])) / 10)
    references = card.uses[use].references
    assert references is not None
    first, shortlist = references.measures["overlap@10"], references.measures["top10_in_100"]
    assert first.reranked is not None
    assert first.reranked.score == pytest.approx(np.mean(shares), abs=1e-6)
    assert first.reranked == shortlist.reranked == shortlist.keep_old
    assert first.keep_old.score < first.reranked.score < 1
    assert card.uses[use].verdict.numbers["reranked"] == first.reranked.score


def similar_to_others(rows: np.ndarray) -> np.ndarray:
    """Return the cosines (n, n) of each row to the others; -2 to itself."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -2)
    return similar


def test_an_old_model_that_is_gone_is_not_reranked():
    X, Y = shared_latent(300, rank=6, d_source=12, d_target=10)
    card = scorecard_of(X, Y, Y, thresholds=Thresholds(old_model="gone"))
    for use in card.uses.values():
        assert use.references is not None
        assert [measure.reranked for measure in use.references.measures.values()] == [None, None]
        assert use.verdict.numbers["reranked"] is None
    assert "reranked" not in card.table()
    assert "old model's shortlist, reranked" in scorecard_of(X, Y, Y).table()


def test_the_references_are_mutual_knn_for_the_old_model_and_one_for_re_embedding():
    X, Y = shared_latent(150)
    card = score(X, Y, Y + gaussian(150, 10, 2))
    for use in USES:
        references = card[use]["references"]["overlap@10"]
        assert references["keep_old"]["score"] == pytest.approx(
            card["alignment"]["mutual_knn"]["before"]["score"], abs=1e-6
        )
        assert references["ceiling"] == {"score": 1.0, "interval": [1.0, 1.0]}


def test_true_neighbours_are_those_of_the_source_for_queries_and_of_the_target_for_a_corpus():
    X, Y = shared_latent(150)
    T = Y + 2 * gaussian(150, 10, 2)
    card = score(X, Y, T)
    y, t = torch.from_numpy(Y), torch.from_numpy(T)
    for use, truth, lists in (
        ("query", neighbours(X), knn(t, y, 10, exclude_self=True)),
        ("corpus", neighbours(Y), knn(y, t, 10, exclude_self=True)),
    ):
        shown = card[use]["references"]["overlap@10"]["translated"]["score"]
        assert shown == pytest.approx(float(overlap(lists, truth).mean()), abs=1e-6)
    assert card["query"]["references"]["truth"] == "source"
    shown = card["corpus"]["references"]["overlap@10"]["translated"]["score"]
    assert shown == pytest.approx(card["corpus"]["overlap@10"], abs=1e-6)


def test_a_naive_swap_is_scored_only_if_both_spaces_have_the_same_dimension():
    X, Y, _ = rotated(100)
    card = score(X, Y, Y)
    same = score(Y, Y, Y + 0.1 * gaussian(100, 8, 3))
    for use in USES:
        assert same[use]["naive"]["recall@1"] == 1
        assert same[use]["references"]["overlap@10"]["naive"]["score"] == pytest.approx(1)
        assert card[use]["naive"]["recall@1"] < 0.2
    X, Y = shared_latent(100)
    for use in USES:
        narrow = score(X, Y, Y)[use]
        assert "naive" not in narrow
        assert "naive" not in narrow["references"]["overlap@10"]


@pytest.mark.parametrize("floor", [np.zeros(10), None], ids=["zero vector", "the mean"])
def test_a_constant_translation_has_overlap_at_chance_and_no_recall_in_a_corpus(floor):
    X, Y = shared_latent(200)
    card = score(X, Y, Y, training_mean=floor)
    assert card["corpus"]["constant"]["recall@10"] == 0
    assert card["corpus"]["references"]["overlap@10"]["constant"]["score"] == pytest.approx(10 / 199)
    assert card["query"]["constant"]["recall@10"] == pytest.approx(0 if floor is not None else 10 / 200)
    assert card["query"]["references"]["overlap@10"]["constant"]["score"] < 0.2


def test_a_constant_query_is_searched_like_any_other_query():
    X, Y = shared_latent(120)
    floor = np.arange(1, 11, dtype=np.float32)
    y, t = torch.from_numpy(Y), torch.from_numpy(np.tile(floor, (120, 1)))
    query = score(X, Y, Y, training_mean=floor)["query"]
    assert query["constant"]["recall@10"] == pytest.approx(float((ranks(t, y) <= 10).float().mean()))
    native = overlap(knn(t, y, 10, exclude_self=True), neighbours(X)).mean()
    assert query["references"]["overlap@10"]["constant"]["score"] == pytest.approx(float(native), abs=1e-6)


def test_the_shortlist_of_an_exact_translation_contains_the_ten_true_neighbours():
    card = exact(300)
    for use in USES:
        part = card[use]["references"]
        assert part["top10_in_100"]["translated"]["score"] == pytest.approx(1)
        assert part["chance"] == {"overlap@10": pytest.approx(10 / 299), "top10_in_100": pytest.approx(100 / 299)}
        assert part["top10_in_100"]["shuffled"]["score"] == pytest.approx(100 / 299, abs=0.06)


def test_an_interval_contains_its_score_and_narrows_with_more_queries():
    widths = []
    for n in (60, 600):
        X, Y = shared_latent(n)
        card = score(X, Y, Y + 2 * gaussian(n, 10, 2), permutations=2)
        for use in USES:
            for name, (low, high) in card[use]["intervals"].items():
                assert low <= card[use][name] <= high
        low, high = card["query"]["intervals"]["overlap@10"]
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 5


def test_each_verdict_can_be_reached():
    X, Y = shared_latent(400, noise=1.0)
    noise = gaussian(400, 10, 4)
    verdicts = {}
    for name, amount in {"use": 0.02, "first": 0.5, "re-embed": 2.0, "lost": 20.0}.items():
        card = score(X, Y, Y + amount * noise, uses=("corpus",), permutations=1)
        verdicts[name] = card["corpus"]["verdict"]["verdict"]
    assert verdicts == {
        "use": "use",
        "first": "use as first stage",
        "re-embed": "re-embed",
        "lost": "keep the old model",
    }


def test_the_verdict_is_undecided_if_the_old_model_is_already_perfect():
    assert exact()["query"]["verdict"]["verdict"] == "undecided"


def test_thresholds_change_the_verdict_and_are_stored_with_it():
    X, Y = shared_latent(300, noise=1.0)
    T = Y + 0.5 * gaussian(300, 10, 4)
    strict, lax = (score(X, Y, T, uses=("corpus",), thresholds=t) for t in (None, Thresholds(0.5, 0.9)))
    assert strict["corpus"]["verdict"]["verdict"] != "use"
    assert lax["corpus"]["verdict"]["verdict"] == "use"
    assert lax["corpus"]["verdict"]["thresholds"] == {"retention": 0.5, "first_stage": 0.9, "old_model": "available"}


@pytest.mark.parametrize("bad", [0, 1.5, float("nan")])
def test_thresholds_outside_their_range_are_refused(bad):
    with pytest.raises(InputError, match="`retention` must be above 0 and at most 1"):
        Thresholds(retention=bad)


def test_a_use_without_a_verdict_states_the_reason():
    X, Y = shared_latent(60)
    repeated = score(np.ones_like(X), Y, Y)["query"]
    assert repeated["verdict"]["verdict"] == "not judged"
    assert "`source` has only 1 different directions" in repeated["verdict"]["why"]
    assert "references" not in repeated
    few = score(X[:12], Y[:12], Y[:12])["query"]["verdict"]
    assert few["why"] == "12 queries are too few for a verdict; at least 20 are needed."


def test_a_shortlist_as_long_as_the_pool_does_not_count_for_the_verdict():
    X, Y = shared_latent(80, noise=1.0)
    verdict = score(X, Y, Y + 0.5 * gaussian(80, 10, 4))["corpus"]["verdict"]
    assert verdict["numbers"]["first_stage"] == 1
    assert verdict["verdict"] == "re-embed"
    assert "too small to judge the shortlist (true neighbours in the first 79)" in verdict["why"]


@pytest.mark.parametrize("n", [110, 115])
def test_a_poor_map_is_not_a_first_stage_in_a_pool_barely_larger_than_the_shortlist(n):
    shared = gaussian(n, 6)
    X, Y = np.hstack([shared, gaussian(n, 10, 1)]), np.hstack([shared, 1.5 * gaussian(n, 10, 2)])
    verdict = score(X, Y, np.hstack([shared, np.zeros((n, 10), dtype=np.float32)]))["corpus"]["verdict"]
    assert verdict["numbers"]["retention"] < 0.3
    assert verdict["verdict"] in ("re-embed", "undecided")


def test_near_duplicates_are_left_out_of_the_queries_only():
    X, Y = shared_latent(100)
    T = Y.copy()
    T[:40] = gaussian(40, 10, 7)
    near_duplicates = np.arange(100) < 40
    card = score(X, Y, T, near_duplicates=near_duplicates)
    without = card["without_near_duplicates"]
    assert without["left_out"] == 40
    assert card["query"]["recall@1"] < 0.8
    assert without["query"]["recall@1"] == 1
    assert set(without["corpus"]) == {"recall@1", "recall@10", "overlap@10"}
    assert "without the 40 near duplicates of training rows: query recall@1 1.000" in table(card)
    every = score(X, Y, T, near_duplicates=np.ones(100, dtype=bool))
    assert every["without_near_duplicates"] == {"left_out": 100}
    assert "no query is left" in table(every)


def test_the_mask_of_near_duplicates_is_cut_to_the_pool_and_needs_one_entry_per_row(monkeypatch):
    X, Y = shared_latent(100)
    monkeypatch.setattr(module, "MAX_POOL", 40)
    near_duplicates = np.arange(100) < 50
    kept = np.sort(np.random.default_rng(0).permutation(100)[:40])
    assert (
        score(X, Y, Y, near_duplicates=near_duplicates)["without_near_duplicates"]["left_out"]
        == near_duplicates[kept].sum()
    )
    with pytest.raises(
        InputError, match=r"`near_duplicates` must have one bool for each row \(100\); got bool of shape \(3,\)"
    ):
        score(X, Y, Y, near_duplicates=near_duplicates[:3])


def test_the_table_shows_references_verdicts_and_the_best_of_each_method():
    X, Y = shared_latent(120)
    card = score(X, Y, Y + 0.5 * gaussian(120, 10, 7))
    tried = [("ridge", 0.5, False), ("ridge", 0.25, False), ("mlp", None, False), ("linear", 0.75, True)]
    card["candidates"] = [{"method": m, "settings": {}, "validation": v, "chosen": chosen} for m, v, chosen in tried]
    text = table(card)
    heads = ("corpus: neighbours in the target space", "query: neighbours in the source space")
    for part in ("keep the old model", "full re-embedding", *heads):
        assert part in text
    for use in USES:
        assert f"\n{use} use, {card[use]['verdict']['verdict']}: {card[use]['verdict']['why']}" in text
        low, high = card[use]["intervals"]["overlap@10"]
        assert f"[{low:.3f}, {high:.3f}]" in text
    rows = [line.split() for line in text.splitlines()[-3:]]
    assert rows == [["ridge", "0.500"], ["mlp", "failed"], ["linear", "0.750", "chosen"]]
    card["candidates"] = [
        {"method": "ridge", "settings": {}, "validation": v, "chosen": False} for v in (None, 0.0, -0.5)
    ]  # no better than the mean, by R²
    assert table(card).splitlines()[-1].split() == ["ridge", "0.000"]


@pytest.mark.parametrize("name", ["format-1-affine", "format-1-residual_mlp"])
def test_a_scorecard_of_an_earlier_release_is_shown_without_the_parts_it_lacks(name):
    card = json.loads((Path(__file__).parents[1] / "golden" / name / "scorecard.json").read_text(encoding="utf-8"))
    assert f"{card['query']['recall@1']:.3f}" in table(card)
    assert "keep the old model" not in table(card)
