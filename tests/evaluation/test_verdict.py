import numpy as np
import pytest

from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import ReferenceScores
from repstitch.evaluation.verdict import compare_with_references, decide


def compared(retention: float, low: float = 0.1, high: float = 0.2) -> ReferenceScores:
    """Scores of a translation that keeps this share of re-embedding, with the interval of its lead on the old model."""
    lead = (low + high) / 2
    scores = {"translated": retention, "keep_old": retention - lead, "ceiling": 1.0, "retention": retention}
    return ReferenceScores(scores | {"over_keep_old": {"score": lead, "interval": [low, high]}})


def said(deciding: ReferenceScores, shortlist: float = 0.0, chance: float = 0.1) -> str:
    whole = decide("overlap@10", deciding, "top10_in_100", compared(shortlist), Thresholds(0.9, 0.95), chance)
    return whole.verdict


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
def test_an_interval_that_holds_0_or_ends_there_decides_nothing(low, high, word):
    assert said(compared(0.99, low, high)) == word


@pytest.mark.parametrize(
    ("retention", "shortlist", "word"),
    [
        (0.9, 0.0, "use"),
        (0.899, 0.95, "use as first stage"),
        (0.899, 0.949, "re-embed"),
    ],
)
def test_a_threshold_is_met_by_what_just_reaches_it(retention, shortlist, word):
    assert said(compared(retention), shortlist) == word


def test_a_shortlist_counts_until_a_random_search_finds_more_than_half_of_it():
    assert said(compared(0.5), 0.99, chance=0.5) == "use as first stage"
    assert said(compared(0.5), 0.99, chance=0.51) == "re-embed"


def test_draws_without_a_hit_of_re_embedding_say_nothing_of_what_is_kept_of_it():
    found = np.arange(20) < 2  # about one draw in eight holds neither of the two
    retention = compare_with_references({"translated": found, "keep_old": ~found, "ceiling": found}).retention
    assert retention is not None
    assert retention.interval == pytest.approx((1, 1))
