import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scorecards import scorecard_of
from helpers.spaces import gaussian, shared_latent

from repstitch.errors import InputError
from repstitch.evaluation.pool import TranslatedPairs
from repstitch.evaluation.relevance import SearchRows
from repstitch.evaluation.scorecard import Scorecard
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import Verdict
from repstitch.names import USES
from repstitch.records import Estimate

GOLDEN = Path(__file__).parents[1] / "golden"


def stored(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "scorecard.json").read_text(encoding="utf-8"))


def whole() -> dict[str, Any]:
    """Return the JSON of a scorecard with every part."""
    card = stored("format-1-confidence")
    card["candidates"] = card["candidates"][:2]
    for name in ("bins", "risk_coverage"):
        card["confidence"][name] = card["confidence"][name][:2]
    card["without_near_duplicates"] = {"left_out": 4} | {use: {"recall@1": 0.25, "overlap@10": 0.5} for use in USES}
    by_relevance = card["query"]["references"]["overlap@10"]
    judged = {"queries": 30, "depth": 83, "ndcg@10": by_relevance, "recall@100": by_relevance}
    counts = ("documents", "unknown_queries", "unknown_documents", "queries_without_relevant")
    card["relevance"] = dict.fromkeys((*counts, "queries_seen_in_training"), 3)
    card["relevance"] |= {use: judged | {"verdict": card[use]["verdict"]} for use in USES}
    card["relevance"]["documents_seen_in_training"] = 5
    accuracy = {
        name: {"score": 0.5, "interval": [0.25, 0.75]} for name in ("carried", "native", "shuffled", "majority")
    }
    card["probe_transfer"] = {"source": "new", "target": "old", "classes": ["a", "b"], "n_test": 9}
    card["probe_transfer"] |= {"accuracy": accuracy, "retention": {"score": 1.0, "interval": [0.5, 1.5]}}
    card["learning_curve"] = {
        "objective": "match",
        "validation_rows": 30,
        "sizes": [20, 40],
        "scores": {"match": [[0.1, 0.2], [0.3]], "recall@1": [[0.2, 0.3], [0.4]]},
        "curve": {"a": 0.9, "b": 2.0, "c": 0.5},
        "doubled": {"pairs": 80, "expected": 0.5, "interval": [0.4, 0.6]},
        "verdict": "more pairs would help.",
    }
    return card | {"refit": True, "left_out": 7, "dropped": {"zero": 2}, "notes": ["few pairs"], "near_duplicates": 4}


# --- fields -----------------------------------------------------------------------------------------------------------


def test_the_scores_of_a_use_have_names_and_intervals():
    values = whole()
    for use, scores in Scorecard.from_dict(values).uses.items():
        part = values[use]
        for k in (1, 5, 10):
            assert scores.recall_at(k) == Estimate(part[f"recall@{k}"], tuple(part["intervals"][f"recall@{k}"]))
        assert scores.mrr == Estimate(part["mrr"], tuple(part["intervals"]["mrr"]))
        assert scores.overlap == Estimate(part["overlap@10"], scores.interval("overlap@10"))
        assert (scores.median_rank, scores.hubness_skew) == (part["median_rank"], part["hubness_skew"])
        for control in ("shuffled", "constant"):
            assert getattr(scores, control).recall_at(5) == Estimate(part[control]["recall@5"])
        assert scores.naive is None
        assert scores.verdict.to_dict() == part["verdict"]
        assert scores.references is not None
        assert (scores.references.truth, scores.references.chance) == (
            part["references"]["truth"],
            part["references"]["chance"],
        )
        first = scores.references.measures["overlap@10"]
        for reference in ("translated", "keep_old", "ceiling", "over_keep_old", "retention"):
            estimate = part["references"]["overlap@10"][reference]
            assert getattr(first, reference) == Estimate(estimate["score"], tuple(estimate["interval"]))
            assert first.get(reference) == getattr(first, reference)


def test_every_other_part_has_the_numbers_of_the_json():
    values = whole()
    card = Scorecard.from_dict(values)
    for name in ("n", "pool", "k", "held_out", "hubness_native", "near_duplicates", "notes", "refit", "left_out"):
        assert getattr(card, name) == values[name]
    assert card.dropped == values["dropped"]
    assert card.chance.recall_at(5).score == values["chance"]["recall@5"]
    for part in ("reconstruction", "spectrum", "control_fit", "relevance", "confidence"):
        record = getattr(card, part)
        for name in {*values[part]} & {*dir(record)} - {"query", "corpus", "bins", "risk_coverage"}:
            assert getattr(record, name) == values[part][name], f"{part}.{name}"
    for metric in ("mutual_knn", "cka_unbiased"):
        for side in ("before", "after"):
            score = getattr(getattr(card.alignment, metric), side)
            assert {name: getattr(score, name) for name in ("score", "null", "p", "calibrated")} == {
                name: values["alignment"][metric][side][name] for name in ("score", "null", "p", "calibrated")
            }
    assert card.without_near_duplicates is not None
    assert card.without_near_duplicates.uses == {use: {"recall@1": 0.25, "overlap@10": 0.5} for use in USES}
    assert [c.to_dict() for c in card.candidates] == values["candidates"]
    assert [(c.method, c.validation, c.chosen, c.settings) for c in card.candidates] == [
        (c["method"], c["validation"], c["chosen"], c["settings"]) for c in values["candidates"]
    ]


def test_the_parts_that_need_calibration_labels_or_judgements_are_records():
    values = whole()
    card = Scorecard.from_dict(values)
    assert card.confidence is not None
    assert card.confidence.unusual == values["confidence"]["unusual@0.05"]
    assert [(b.predicted, b.observed, b.n) for b in card.confidence.bins] == [
        (b["predicted"], b["observed"], b["n"]) for b in values["confidence"]["bins"]
    ]
    assert card.confidence.risk_coverage == [
        (point["coverage"], point["risk"]) for point in values["confidence"]["risk_coverage"]
    ]
    assert card.probe_transfer is not None
    assert card.probe_transfer.accuracy.carried == Estimate(0.5, (0.25, 0.75))
    assert card.probe_transfer.retention == Estimate(1.0, (0.5, 1.5))
    assert card.relevance is not None
    assert (card.relevance.query.queries, card.relevance.corpus.depth) == (30, 83)
    curve = card.learning_curve
    assert curve is not None
    assert curve.doubled is not None
    assert (curve.doubled.pairs, curve.doubled.expected) == (80, Estimate(0.5, (0.4, 0.6)))
    for name in ("objective", "validation_rows", "sizes", "scores", "curve", "verdict"):
        assert getattr(curve, name) == values["learning_curve"][name]


def test_parts_that_were_not_scored_are_none():
    card = Scorecard.from_dict(stored("format-1-affine"))
    for name in ("confidence", "spectrum", "relevance", "probe_transfer", "learning_curve", "left_out"):
        assert getattr(card, name) is None
    assert (card.notes, card.dropped, card.refit, card.query.references) == ([], {}, False, None)


def test_the_error_on_a_rank_or_use_that_was_not_scored_lists_the_available_ones():
    values = whole()
    del values["corpus"]
    card = Scorecard.from_dict(values)
    with pytest.raises(InputError, match=r"`k` must be a rank that recall was scored at \(1, 5, 10\); got 3\."):
        card.query.recall_at(3)
    with pytest.raises(InputError, match=r"`use` must be a use that was scored \(query\); got 'corpus'\."):
        _ = card.corpus
    with pytest.raises(InputError, match=r"`name` must be a score with an interval \(.*mrr.*\); got 'median_rank'"):
        card.query.interval("median_rank")
    with pytest.raises(InputError, match="have no verdict, because an earlier release wrote them"):
        _ = Scorecard.from_dict(stored("format-1-affine")).query.verdict


def test_the_recall_of_query_use_is_none_if_it_was_not_scored():
    assert Scorecard.from_dict(whole()).query_recall == whole()["query"]["recall@1"]
    assert Scorecard().query_recall is None
    assert Scorecard({"query": {}}).query_recall is None


def test_a_verdict_equals_its_name_and_has_a_reason():
    X, Y = shared_latent(300, noise=1.0)
    T = Y + 0.5 * gaussian(300, 10, 4)
    card = scorecard_of(X, Y, T, uses=("corpus",), thresholds=Thresholds(0.5, 0.9))
    verdict = card.corpus.verdict
    assert verdict == "use"
    assert verdict != "re-embed"
    assert (str(verdict), f"{verdict}", {verdict: 1}["use"]) == ("use", "use", 1)  # type: ignore[index]
    assert verdict.thresholds == Thresholds(0.5, 0.9)
    assert verdict.numbers["score"] == pytest.approx(card.corpus.overlap.score)
    assert repr(verdict) == f"Verdict('use': {verdict.why})"
    assert verdict == type(verdict)(verdict.to_dict())
    assert verdict != type(verdict)(verdict.to_dict() | {"why": "otherwise"})


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_every_key_is_kept_in_order_including_those_of_a_newer_release():
    values = {"tomorrow": [1], **whole()}
    values["query"] = {"new": 1, **values["query"]}
    card = Scorecard.from_dict(values)
    assert json.dumps(card.to_dict()) == json.dumps(values)
    assert Scorecard.from_dict(card.to_dict()) == card
    assert hash(Scorecard.from_dict(card.to_dict())) == hash(card)


def with_unknown_keys(value: Any) -> Any:
    """Return the JSON value with keys of a newer release added to every object."""
    if isinstance(value, dict):
        new = {"tomorrow": {"a": [None]}, "recall@1%": 0.5, "recall@all": {"score": 1}, "overlap@1%": 0.5}
        return new | {name: with_unknown_keys(part) for name, part in value.items()}
    return [with_unknown_keys(part) for part in value] if isinstance(value, list) else value


def test_unknown_keys_at_every_level_are_kept_and_otherwise_ignored():
    values = with_unknown_keys(whole())
    card, known = Scorecard.from_dict(values), Scorecard.from_dict(whole())
    assert json.dumps(card.to_dict()) == json.dumps(values)
    assert list(card.query.recall) == [1, 5, 10]
    assert card.query.overlap == known.query.overlap
    assert card.query.verdict.thresholds == known.query.verdict.thresholds
    assert (repr(card), card.query_recall) == (repr(known), known.query_recall)
    for text, expected in ((str(card), str(known)), (card._repr_markdown_(), known._repr_markdown_())):
        lines = [line for line in text.splitlines() if "without the 4 near duplicates" not in line]
        assert lines == [line for line in expected.splitlines() if "without the 4 near duplicates" not in line]


def test_whole_numbers_may_be_stored_as_floats():
    card = Scorecard.from_dict(whole() | {"n": 83.0})
    assert (card.n, type(card.n)) == (83, int)
    assert str(card) == str(Scorecard.from_dict(whole()))


OPTIONAL = {
    "control_fit": ("method", "recall@1"),
    "confidence": ("hits", "unusual@0.05", "bins", "calibration_rows", "risk_coverage"),
    "spectrum": ("direction", "correlation"),
    "learning_curve": ("objective", "validation_rows", "sizes", "scores", "curve", "doubled", "verdict"),
}


def test_keys_that_no_report_prints_may_be_absent():
    values = whole()
    for name, keys in OPTIONAL.items():
        for key in keys:
            del values[name][key]
    for use in USES:
        del values[use]["references"]["chance"]
        for rank in ("recall@1", "recall@5"):
            del values[use]["shuffled"][rank]
    card = Scorecard.from_dict(values)
    assert str(card) == str(Scorecard.from_dict(whole()))
    assert card.confidence is not None
    assert (card.confidence.hits, card.confidence.bins, card.confidence.risk_coverage) == (None, [], [])
    assert card.learning_curve is not None
    assert (card.learning_curve.doubled, card.learning_curve.sizes) == (None, [])


def test_invalid_nested_values_are_refused_when_the_scorecard_is_read():
    values = whole()
    values["learning_curve"]["doubled"]["interval"] = [0.1, 0.2, 0.3]
    with pytest.raises(InputError, match="'interval' of a DoubledPairs must be a list of two numbers"):
        Scorecard.from_dict(values)
    values = whole()
    values["confidence"]["risk_coverage"] = [1]
    with pytest.raises(InputError, match="'risk_coverage' of a CalibrationScores must be a list of objects"):
        Scorecard.from_dict(values)
    values = whole()
    values["query"]["verdict"]["thresholds"]["retention"] = "much"
    with pytest.raises(InputError, match="'thresholds' of a Verdict cannot be used"):
        Scorecard.from_dict(values)


# --- records made by hand ---------------------------------------------------------------------------------------------


def test_a_record_that_was_not_checked_can_be_shown_hashed_and_compared():
    assert repr(Scorecard({"foo": 1})) == "Scorecard(foo)"
    assert repr(Scorecard({"n": 1, "query": 3})) == "Scorecard(n, query)"
    assert repr(Verdict({})) == "Verdict()"
    assert hash(Verdict({})) == hash(Verdict({}))
    assert hash(Verdict({"verdict": []})) == hash(Verdict({"verdict": []}))
    assert Verdict({}) != "use"
    assert Verdict({}) == Verdict({})


def test_equal_records_have_the_same_hash():
    for left, right in (({"n": 1}, {"n": 1.0}), ({"a": 1, "b": [2]}, {"b": [2.0], "a": True})):
        assert Scorecard(left) == Scorecard(right)
        assert hash(Scorecard(left)) == hash(Scorecard(right))
    mixed: dict[Any, int] = {1: 2, "a": 3}
    assert hash(Scorecard(mixed)) == hash(Scorecard(dict(mixed)))
    assert repr(Scorecard(mixed)) == "Scorecard(1, a)"


def test_a_part_that_was_not_scored_is_not_an_attribute():
    assert not hasattr(Scorecard(), "query")
    assert not hasattr(Scorecard(), "n")
    assert hasattr(Scorecard.from_dict(whole()), "query")


def test_a_field_cannot_be_set():
    card = Scorecard.from_dict(whole())
    with pytest.raises(AttributeError, match=r"`n` of a Scorecard cannot be set; a record is read-only\."):
        card.n = 5
    assert card.n == 83


def test_to_dict_returns_a_copy():
    card = Scorecard.from_dict(whole())
    card.to_dict()["query"]["recall@1"] = 2.0
    assert card.query.recall_at(1).score == whole()["query"]["recall@1"]


def paths(values: Any, at: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value inside a JSON value."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from paths(value, (*at, key))


def card_or_refusal(values: dict[str, Any]) -> Scorecard | str:
    try:
        return Scorecard.from_dict(values)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("change", ["left out", "text", "null", "a list", "a number"])
def test_every_scorecard_that_is_accepted_can_be_shown(change):
    """After any change to one value, the scorecard is refused with the name of the key, or it can be printed."""
    refused, stored_values = 0, whole()
    for path in paths(stored_values):
        values = copy.deepcopy(stored_values)
        parent = values
        for key in path[:-1]:
            parent = parent[key]
        if change == "left out":
            if isinstance(parent, list):
                continue
            del parent[path[-1]]
        else:
            parent[path[-1]] = {"text": "x", "null": None, "a list": [1], "a number": 0.5}[change]
        card = card_or_refusal(values)
        if isinstance(card, str):
            keys = [key for key in path if isinstance(key, str)]
            assert any(f"'{key}" in card or f"{key}'" in card for key in keys), f"{path}: {card}"
            refused += 1
        else:
            assert len(card.table().splitlines()) > 10
            assert len(str(card).splitlines()) >= 5
            assert repr(card)
            assert card._repr_markdown_()
    assert refused > 40


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": 1}, "A Scorecard must have the key 'pool'; it has n"),
        ({"n": 1, "pool": 1, "k": 1}, "A Scorecard must have the key 'chance'"),
        (stored("format-1-affine") | {"query": 3}, "'query' of a Scorecard must be an object; got int"),
        (stored("format-1-affine") | {"n": True}, "'n' of a Scorecard must be a whole number; got bool"),
        (stored("format-1-affine") | {"n": 1.5}, "'n' of a Scorecard must be a whole number; got float"),
        (stored("format-1-affine") | {"candidates": [1]}, "'candidates' of a Scorecard must be a list of objects"),
        (stored("format-1-affine") | {"held_out": 1}, "'held_out' of a Scorecard must be text; got int"),
    ],
)
def test_the_error_names_the_invalid_key(values, message):
    with pytest.raises(InputError, match=message):
        Scorecard.from_dict(values)


# --- text and Markdown ------------------------------------------------------------------------------------------------


def test_a_card_of_an_earlier_release_is_never_shown_as_use():
    values = whole()
    for scores, word in ((values, "use"), (values["relevance"], "use as first stage")):
        scores["query"]["verdict"] = scores["query"]["verdict"] | {"verdict": word, "why": "It is good."}
    card = Scorecard.from_dict(values)
    shown = card.shown()
    assert shown["query"]["verdict"]["verdict"] == "probably use"
    assert shown["query"]["verdict"]["why"] == "It is good. (interval over queries only: score again)"
    assert shown["relevance"]["query"]["verdict"]["verdict"] == "probably use as first stage"
    assert card.to_dict() == values
    assert "QUERY USE (translated queries, native index): probably use (interval over queries only: score again)." in (
        str(card)
    )


def test_a_scorecard_is_shown_in_ten_lines_as_a_table_and_in_one_line():
    card = Scorecard.from_dict(whole())
    lines = str(card).splitlines()
    assert lines[0].startswith(
        "QUERY USE (translated queries, native index): re-embed (interval over queries only: score again). The first "
    )
    assert lines[1].startswith("CORPUS USE (translated index, native queries): re-embed (interval over queries only: ")
    assert lines[3].split() == ["83", "test", "pairs,", "pool", "of", "83", "query", "use", "corpus", "use", "chance"]
    assert lines[7].split()[-8:-4] == ["(recall@1)", "0.205", "[0.132,", "0.289]"]
    assert len(lines) == 10
    lines = card.table().splitlines()
    assert lines[:2] == str(card).splitlines()[:2]
    start = next(i for i, line in enumerate(lines) if line.startswith("83 test pairs"))
    assert lines[start].split() == ["83", "test", "pairs,", "pool", "of", "83", "query", "corpus", "chance"]
    assert lines[start + 1].split()[:4] == ["recall@1", "0.205", "[0.132,", "0.289]"]
    assert repr(card) == (
        "Scorecard(n=83, query: recall@1=0.205 verdict='re-embed', corpus: recall@1=0.181 verdict='re-embed')"
    )
    assert repr(Scorecard.from_dict(stored("format-1-affine"))) == (
        "Scorecard(n=58, query: recall@1=0.414, corpus: recall@1=0.293)"
    )
    assert repr(card.query.references) == "References(chance, overlap@10, top10_in_82, truth)"


def test_a_notebook_shows_the_words_of_the_table_as_markdown():
    card = Scorecard.from_dict(whole())
    text, markdown = card.table(), card._repr_markdown_()
    assert "| recall@1 | 0.205 [0.132, 0.289] | 0.181 [0.108, 0.265] | 0.012 |" in markdown
    words = [word for word in markdown.split() if word.strip("|-:")]
    assert [word for word in words if word not in text.split()] == []
    assert [word for word in text.split() if word not in words] == []


def test_records_of_pairs_and_rows_are_shown_without_their_values():
    rows = torch.zeros(3, 4)
    assert repr(TranslatedPairs(rows, rows[:, :2], rows[:, :2], rows[:, :2])) == "TranslatedPairs(3 pairs, 4 -> 2)"
    search_rows = SearchRows(np.arange(3), rows, rows, rows, np.zeros(3, dtype=bool))
    assert repr(search_rows) == "SearchRows(3 rows)"
    assert search_rows != search_rows.take(np.arange(3))


def test_an_empty_scorecard_is_false_and_is_shown_as_no_scorecard():
    for card in (Scorecard(), Scorecard.from_dict({})):
        assert not card
        assert (str(card), repr(card), card.to_dict(), card.uses) == ("no scorecard", "Scorecard()", {}, {})
    assert Scorecard.from_dict(whole())


@pytest.mark.parametrize(
    ("card", "recall"),
    [
        ({"query": {"recall@1": 0.25, "intervals": {"recall@1": [0.1, 0.4]}}}, 0.25),
        ({"query": {"recall@1": 1}}, 1.0),
        ({"query": {"recall@5": 0.5}}, None),
        ({"corpus": {"recall@1": 0.5}}, None),
        ({"query": None}, None),
        ({}, None),
    ],
)
def test_query_recall_equals_the_recall_of_the_query_scores(card, recall):
    assert Scorecard(card).query_recall == recall
    uses = Scorecard(card).uses
    assert recall is None or uses["query"].recall_at(1).score == recall
