import numpy as np
import pytest

from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import ReferenceScores
from repstitch.evaluation.verdict import compare_with_references, decide


def compared(retention: float, low: float = 0.1, high: float = 0.2) -> ReferenceScores:
    """Return the scores of a translation with this retention and this interval of its lead over the old model."""
    lead = (low + high) / 2
    scores = {"translated": retention, "keep_old": retention - lead, "ceiling": 1.0, "retention": retention}
    return ReferenceScores(scores | {"over_keep_old": {"score": lead, "interval": [low, high]}})


def verdict_of(deciding: ReferenceScores, shortlist: float = 0.0, chance: float = 0.1) -> str:
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
def test_an_interval_that_contains_0_or_ends_at_0_leaves_the_verdict_undecided(low, high, word):
    assert verdict_of(compared(0.99, low, high)) == word


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


def test_draws_in_which_re_embedding_has_no_hit_are_left_out_of_the_retention():
    hits = np.arange(20) < 2  # about one draw in eight contains neither of the two hits
    retention = compare_with_references({"translated": hits, "keep_old": ~hits, "ceiling": hits}).retention
    assert retention is not None
    assert retention.interval == pytest.approx((1, 1))
