"""The scorecard in ten lines: the advice for each verdict, and the five numbers behind it."""

import numpy as np
import pytest
from helpers.scorecards import scorecard_of
from helpers.spaces import gaussian, shared_latent

from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.summary import advice
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import Verdict
from repstitch.evaluation.verdict import compare_with_references, decide
from repstitch.metrics.delete_one import RowScores

POOR = "The first 10 results keep only 40 % of the neighbours that re-embedding finds (the old model 30 %)"


def verdict(score: float, shortlist: float, keep_old: float = 0.3, spread: float = 0.0, chance: float = 0.1) -> Verdict:
    """Return the verdict on 20,000 queries with these mean shares of true neighbours."""
    random = np.random.default_rng(0)
    rows = {"translated": score, "keep_old": keep_old, "ceiling": 1.0}
    noise = spread * random.standard_normal(20_000)
    scores = {
        name: RowScores(np.full(20_000, value) + (noise if name == "translated" else 0)) for name, value in rows.items()
    }
    listed = {name: RowScores(np.full(20_000, shortlist if name == "translated" else 1.0)) for name in rows}
    first, second = compare_with_references(scores), compare_with_references(listed)
    return decide("overlap@10", first, "top10_in_100", second, Thresholds(), chance)


@pytest.mark.parametrize(
    ("made", "word", "message"),
    [
        (
            verdict(0.93, 0.99),
            "use",
            "The first 10 results keep 93 % of the neighbours that re-embedding finds; keeping the old model keeps "
            "30 %.",
        ),
        (
            verdict(0.63, 0.992),
            "use as first stage",
            "Fetch 100 and rerank: they keep 99 % of the neighbours that re-embedding finds; the first 10 alone 63 %.",
        ),
        (
            verdict(0.63, 0.9992),
            "use as first stage",
            "Fetch 100 and rerank: they keep 99.9 % of the neighbours that re-embedding finds; the first 10 alone "
            "63 %.",
        ),
        (
            verdict(0.4, 0.8),
            "re-embed",
            f"{POOR}; the first 100 keep 80 %.",
        ),
        (
            verdict(0.4, 1.0, chance=0.9),
            "re-embed",
            f"{POOR}; the scored pool is too small to judge a longer list.",
        ),
        (
            verdict(0.2, 0.8),
            "keep the old model",
            "The old model keeps 30 % of the neighbours that re-embedding finds; the translation only 20 %.",
        ),
        (
            verdict(0.3, 0.8, spread=0.2),
            "undecided",
            "The first 10 results keep 30 % of the neighbours that re-embedding finds, the old model 30 %: too close "
            "to tell apart. Score more pairs.",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_each_verdict_says_what_to_do(made, word, message):
    assert (made, advice(made)) == (word, message)


def test_with_relevance_judgements_the_advice_names_their_measures():
    numbers = {"score": 0.4, "keep_old": 0.2, "ceiling": 0.5, "first_stage": 0.97, "first_stage_chance": 0.1}
    made = Verdict(
        {
            "verdict": "use as first stage",
            "why": "",
            "sure": True,
            "measure": "ndcg@10",
            "numbers": numbers | {"recall@100": 0.9},
        }
    )
    message = "Fetch 100 and rerank: they keep 97 % of the recall@100 of re-embedding; the first 10 alone 80 %."
    assert advice(made) == message
    made = Verdict(
        {"verdict": "use", "why": "", "sure": True, "measure": "ndcg@10", "numbers": numbers | {"recall@100": 0.9}}
    )
    kept = "The first 10 results keep 80 % of the nDCG@10 of re-embedding; keeping the old model keeps 40 %."
    assert advice(made) == kept


@pytest.mark.parametrize("word", ["use as first stage", "probably use as first stage"])
def test_a_first_stage_is_told_apart_from_the_rival_without_a_map_and_its_price(word):
    numbers = {"score": 0.4, "keep_old": 0.2, "ceiling": 0.5, "first_stage": 0.97, "first_stage_chance": 0.1}
    values = {"verdict": word, "why": "", "sure": True, "measure": "ndcg@10"}
    numbers |= {"recall@100": 0.9, "reranked": 0.45}
    made = Verdict(values | {"numbers": numbers})
    assert advice(made, "minilm", "e5").endswith(
        " Without a map, the first 100 of the old model (minilm) reranked with e5 keep 90 % of the nDCG@10 of "
        "re-embedding with e5, at the price of 100 documents embedded with e5 for each query, or of native vectors of "
        "all documents kept."
    )
    assert "reranked with the new model keep 90 % of the nDCG@10 of re-embedding, at" in advice(made)
    assert "Without a map" not in advice(Verdict(values | {"verdict": "use", "numbers": numbers}))
    assert "Without a map" not in advice(Verdict(values | {"numbers": numbers | {"reranked": None}}))


def test_an_old_model_that_beats_re_embedding_is_named_with_its_score_and_no_share_above_100_percent():
    numbers = {"score": 0.09, "keep_old": 0.432, "ceiling": 0.1, "first_stage": 0.9, "first_stage_chance": 0.1}
    made = Verdict(
        {"verdict": "keep the old model", "why": "", "measure": "ndcg@10", "numbers": numbers | {"recall@100": 0.9}}
    )
    message = "The old model (minilm) scores higher (0.432) than re-embedding with e5 (0.100) by nDCG@10"
    assert advice(made, "minilm", "e5") == f"{message}; the translation has 0.090."


def test_a_share_that_misses_its_threshold_is_not_rounded_up_to_it():
    assert verdict(0.896, 0.948) == "re-embed"
    assert "keep only 89.6 %" in advice(verdict(0.896, 0.948))
    assert advice(verdict(0.896, 0.948)).endswith("the first 100 keep 94.8 %.")
    assert "keep 90 %" in advice(verdict(0.9001, 0.94))


def test_undecided_by_relevance_asks_for_judged_queries():
    numbers = {"score": 0.4, "keep_old": 0.4, "ceiling": 0.5, "first_stage": 0.97, "first_stage_chance": 0.1}
    made = Verdict({"verdict": "undecided", "why": "", "measure": "ndcg@10", "numbers": numbers | {"recall@100": 0.9}})
    assert advice(made).endswith("too close to tell apart. Score more judged queries.")


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), None, "x"])
def test_numbers_that_cannot_be_read_leave_the_reason(broken):
    numbers = {"score": broken, "keep_old": 0.4, "ceiling": 0.5, "first_stage": 0.97, "first_stage_chance": 0.1}
    made = Verdict(
        {
            "verdict": "use",
            "why": "because",
            "sure": True,
            "measure": "overlap@10",
            "numbers": numbers | {"top10_in_100": 1},
        }
    )
    assert advice(made) == "Because"


def test_the_lines_name_the_spaces_by_their_roles():
    X, Y = shared_latent(120)
    values = scorecard_of(X, Y, Y + 0.5 * gaussian(120, 10, 7), permutations=2).to_dict()
    query, corpus = str(Scorecard(values | {"source": "e5", "target": "minilm"})).splitlines()[:2]
    assert query.startswith("QUERY USE (e5 queries, minilm index): ")
    assert "re-embedding with e5" in query
    assert "the old model (minilm)" in query.lower()
    assert corpus.startswith("CORPUS USE (translated e5 index, minilm queries): ")
    assert "re-embedding with minilm" in corpus
    assert "the old model (e5)" in corpus.lower()
    query, corpus = str(Scorecard(values)).splitlines()[:2]
    assert query.startswith("QUERY USE (translated queries, native index): ")
    assert corpus.startswith("CORPUS USE (translated index, native queries): ")


def test_a_verdict_without_numbers_is_explained_by_its_reason():
    made = Verdict({"verdict": "not judged", "why": "the 12 queries are too few."})
    assert advice(made) == "The 12 queries are too few."


def test_the_five_numbers_equal_those_of_the_scorecard():
    X, Y = shared_latent(120)
    card = scorecard_of(X, Y, Y + 0.5 * gaussian(120, 10, 7), permutations=2)
    lines = str(card).splitlines()
    assert len(lines) <= 10
    table = {line.split("  ")[0].strip() or line.split("  ")[1].strip(): line for line in lines[3:]}
    references = card.query.references
    assert references is not None
    overlap = references.measures["overlap@10"]
    for label, score in (
        ("true neighbours in the first 10", overlap.translated),
        ("by keeping the old model", overlap.keep_old),
        ("true neighbours in the first 100", references.measures["top10_in_100"].translated),
        ("the counterpart comes first (recall@1)", card.query.recall_at(1)),
        ("the counterpart in the first 10 (recall@10)", card.query.recall_at(10)),
    ):
        assert str(score) in table[label]
    assert f"{references.chance['overlap@10']:.3f}" in table["true neighbours in the first 10"]


def test_warnings_and_an_unusable_confidence_are_shown():
    X, Y = shared_latent(60)
    values = scorecard_of(X, Y, Y, permutations=2).to_dict() | {"notes": ["3 rows repeat.", "Few pairs."]}
    lines = str(Scorecard(values)).splitlines()
    assert lines[-1] == "2 warnings on the pairs: 3 rows repeat."
    confidence = {"usable": False, "reason": "it was tested on 3 hits"}
    lines = str(Scorecard(values | {"confidence": confidence})).splitlines()
    assert lines[-1] == "Confidence not usable: it was tested on 3 hits."


@pytest.mark.parametrize("objective", ["match", "neighbours", "reconstruction", None])
def test_a_negative_r2_is_explained_unless_the_objective_is_reconstruction(objective):
    X, Y = shared_latent(60)
    values = scorecard_of(X, Y, 4 * Y, permutations=2).to_dict()
    values["reconstruction"] |= {"r2": -5.6}
    line = next(one for one in Scorecard(values | {"objective": objective}).table().splitlines() if "R²" in one)
    assert "R² -5.600" in line
    if objective == "reconstruction":
        assert line.endswith("times the target's")
    elif objective is None:
        assert line.endswith("; only a map made for `reconstruction` aims at a high R²")
    else:
        assert line.endswith(
            f"a map made for `{objective}` does not aim at a high cosine or R², and its R² can be far below 0"
        )


def test_no_two_measures_of_the_whole_table_share_a_name():
    """The overlap of a use is with the target's neighbours, the overlap of its references with the true neighbours."""
    X, Y = shared_latent(120)
    card = scorecard_of(X, Y, Y + 0.5 * gaussian(120, 10, 7), permutations=2)
    table = card.table()
    assert "target's neighbours in the first 10 " in table
    assert "true neighbours in the first 10, translated" in table
    labels = [line.split("  ")[0] for line in table.splitlines() if "  " in line.strip() and not line.startswith(" ")]
    assert len(labels) == len(set(labels))
