# pyright: strict
"""Score a translation on held-out pairs or by relevance judgements: the scorecard and its verdicts."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.evaluation.pool import TranslatedPairs
    from repstitch.evaluation.qrels import read_qrels
    from repstitch.evaluation.relevance import SearchRows, score_relevance
    from repstitch.evaluation.relevance_data import RelevanceData
    from repstitch.evaluation.scorecard import Scorecard
    from repstitch.evaluation.scoring import score_pairs
    from repstitch.evaluation.thresholds import Thresholds
    from repstitch.evaluation.use_scores import UseScores, Verdict

__all__ = [
    "RelevanceData",
    "Scorecard",
    "SearchRows",
    "Thresholds",
    "TranslatedPairs",
    "UseScores",
    "Verdict",
    "read_qrels",
    "score_pairs",
    "score_relevance",
]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "qrels": ("read_qrels",),
        "relevance": ("SearchRows", "score_relevance"),
        "relevance_data": ("RelevanceData",),
        "scorecard": ("Scorecard",),
        "pool": ("TranslatedPairs",),
        "scoring": ("score_pairs",),
        "thresholds": ("Thresholds",),
        "use_scores": ("UseScores", "Verdict"),
    },
)
