import numpy as np
import pytest

from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import ReferenceScores, Verdict
from repstitch.evaluation.verdict import compare_with_references, decide, not_judged
from repstitch.metrics.delete_one import RowScores
from repstitch.names import VERDICTS


def compared(retention: float | list[float], low: float = 0.1, high: float = 0.2) -> ReferenceScores:
    """Return the scores of a translation with this retention and this interval of its lead over the old model.

    A retention is one number, whose interval is narrow, or the low end, the score and the high end.
    """
    ends = retention if isinstance(retention, list) else [retention, retention, retention]
    lead = (low + high) / 2
    share = {"score": ends[1], "interval": [ends[0], ends[2]]}
    scores = {"translated": ends[1], "keep_old": ends[1] - lead, "ceiling": 1.0, "retention": share}
    return ReferenceScores(scores | {"over_keep_old": {"score": lead, "interval": [low, high]}})


def decided(deciding: ReferenceScores, shortlist: float | list[float] = 0.0, chance: float = 0.1) -> Verdict:
    return decide("overlap@10", deciding, "top10_in_100", compared(shortlist), Thresholds(0.9, 0.95), chance)


def verdict_of(deciding: ReferenceScores, shortlist: float | list[float] = 0.0, chance: float = 0.1) -> str:
    return decided(deciding, shortlist, chance).verdict


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, -0.01, "keep the old model"),
        (-0.2, 0.0, "undecided"),
        (-0.1, 0.1, "undecided"),
        (0.0, 0.2, "undecided"),
        (0.01, 0.2, "use"),
    ],
)
def test_an_interval_that_contains_0_or_ends_at_0_leaves_the_verdict_undecided(low, high, word):
    assert verdict_of(compared(0.99, low, high)) == word


@pytest.mark.parametrize(
    ("low", "high"), [(-0.2, -0.1), (-0.1, 0.1), (0.1, 0.2)], ids=["worse", "about as good", "better"]
)
@pytest.mark.parametrize(
    ("retention", "shortlist", "word"),
    [
        (0.95, 0.0, "use"),
        ([0.88, 0.92, 0.96], 0.0, "probably use"),
        (0.5, 0.99, "use as first stage"),
        (0.5, 0.5, "re-embed"),
    ],
)
def test_if_the_old_model_is_gone_only_the_shares_of_re_embedding_decide(retention, shortlist, word, low, high):
    gone = Thresholds(old_model="gone")
    verdict = decide("overlap@10", compared(retention, low, high), "top10_in_100", compared(shortlist), gone, 0.1)
    assert verdict == word
    assert verdict.why.startswith("judged against re-embedding alone, because the old model is gone: ")
    assert verdict.thresholds == gone


def test_an_undecided_verdict_says_how_to_judge_without_the_old_model():
    verdict = decided(compared(0.96, -0.1, 0.1))
    assert verdict == "undecided"
    assert (
        "If the old model has to go, judge against re-embedding alone with `old_model`: it keeps 96.0 %" in verdict.why
    )


def test_another_word_for_the_old_model_is_refused():
    with pytest.raises(InputError, match="`old_model` must be one of available, gone; got 'dead'"):
        Thresholds(old_model="dead")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("retention", "shortlist", "word"),
    [
        (0.9, 0.0, "use"),
        (0.899, 0.95, "use as first stage"),
        (0.899, 0.949, "re-embed"),
    ],
)
def test_a_score_equal_to_a_threshold_meets_it(retention, shortlist, word):
    assert verdict_of(compared(retention), shortlist) == word


def test_a_shortlist_is_ignored_if_a_random_search_finds_more_than_half_of_it():
    assert verdict_of(compared(0.5), 0.99, chance=0.5) == "use as first stage"
    assert verdict_of(compared(0.5), 0.99, chance=0.51) == "re-embed"


@pytest.mark.parametrize(
    ("retention", "shortlist", "word", "sure"),
    [
        ([0.9, 0.92, 0.94], [0.9, 0.94, 0.96], "use", True),
        ([0.89, 0.92, 0.94], [0.9, 0.94, 0.96], "probably use", False),
        ([0.89, 0.92, 0.94], [0.95, 0.96, 0.97], "use as first stage", True),
        ([0.8, 0.85, 0.89], [0.95, 0.96, 0.97], "use as first stage", True),
        ([0.8, 0.85, 0.91], [0.94, 0.96, 0.97], "probably use as first stage", False),
        ([0.8, 0.85, 0.9], [0.8, 0.85, 0.9], "re-embed", False),
        ([0.8, 0.85, 0.89], [0.8, 0.94, 0.95], "re-embed", False),
        ([0.8, 0.85, 0.89], [0.8, 0.94, 0.949], "re-embed", True),
    ],
)
def test_a_share_is_enough_only_if_its_whole_interval_reaches_the_threshold(retention, shortlist, word, sure):
    made = decided(compared(retention), shortlist)
    assert (made.verdict, made.sure) == (word, sure)
    assert made.numbers["retention_interval"] == [retention[0], retention[2]]
    assert made.numbers["first_stage_interval"] == [shortlist[0], shortlist[2]]


def test_the_shortlist_of_a_small_pool_neither_decides_nor_makes_re_embed_unsure():
    made = decided(compared([0.5, 0.6, 0.7]), [0.8, 0.94, 0.99], chance=0.51)
    assert (made.verdict, made.sure) == ("re-embed", True)


def test_every_verdict_is_one_of_the_names():
    words = {
        verdict_of(compared(retention, low, high), shortlist)
        for low, high in ((-0.2, -0.1), (-0.1, 0.1), (0.1, 0.2))
        for retention in ([0.91, 0.92, 0.93], [0.8, 0.92, 0.93], [0.5, 0.6, 0.7])
        for shortlist in ([0.96, 0.97, 0.98], [0.9, 0.96, 0.98], [0.5, 0.6, 0.7])
    }
    assert words | {not_judged("few", Thresholds()).verdict} == set(VERDICTS)


def test_a_verdict_over_queries_only_is_shown_as_such_and_is_never_use():
    for word, shown in (("use", "probably use"), ("use as first stage", "probably use as first stage")):
        old = Verdict({"verdict": word, "why": "It is good.", "measure": "overlap@10"})
        assert (old.verdict, str(old), old.sure) == (shown, shown, False)
        assert old == shown
        assert old != word
        assert old.why == "It is good. (interval over queries only: score again)"
        assert old.to_dict()["verdict"] == word
    assert not decided(compared(0.99)).over_queries_only
    assert not not_judged("few", Thresholds()).over_queries_only


def test_the_interval_of_a_translation_that_equals_re_embedding_has_a_width():
    hits = RowScores((np.arange(20) < 2).astype(float))
    scores = compare_with_references({"translated": hits, "keep_old": RowScores(1 - hits.values), "ceiling": hits})
    assert scores.retention is not None
    assert scores.retention.interval is not None
    low, high = scores.retention.interval
    assert low == 0  # only two queries say anything
    assert high == pytest.approx(10)
