# pyright: strict
"""The verdict: is a translation worth using, by its scores beside those of the references?"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from repstitch.evaluation.thresholds import Thresholds
from repstitch.evaluation.use_scores import ReferenceScores, Verdict
from repstitch.metrics.resample import interval, resampled_means
from repstitch.text import num

MIN_QUERIES = 20
MOST_CHANCE = 0.5  # of a shortlist; beyond it, a poor map fills it nearly as well as a good one


def compare_with_references(rows: Mapping[str, np.ndarray], seed: int = 0) -> ReferenceScores:
    """Scores with 95 % intervals, from values (n,) a query of `translated`, `keep_old`, `ceiling` and more references.

    All intervals are over the same resampled queries, so that differences and ratios are paired.
    """
    names = list(rows)
    values = np.column_stack([np.asarray(rows[name], dtype=np.float64) for name in names])
    means = dict(zip(names, values.mean(0).tolist(), strict=True))
    draws = dict(zip(names, resampled_means(values, seed=seed).T, strict=True))
    scores: dict[str, Any] = {name: {"score": means[name], "interval": interval(draws[name])} for name in names}
    scores["over_keep_old"] = {
        "score": means["translated"] - means["keep_old"],
        "interval": interval(draws["translated"] - draws["keep_old"]),
    }
    scores["retention"] = None
    if means["ceiling"] > 0:
        ceiling = np.where(draws["ceiling"] > 0, draws["ceiling"], np.nan)
        scores["retention"] = {
            "score": means["translated"] / means["ceiling"],
            "interval": interval(draws["translated"] / ceiling),
        }
    return ReferenceScores(scores)


def decide(
    measure: str,
    deciding: ReferenceScores,
    shortlist_measure: str,
    shortlist: ReferenceScores,
    thresholds: Thresholds,
    chance: float,
    truth: str = "",
) -> Verdict:
    """The verdict on one use.

    `deciding` holds the scores by `measure` (overlap@10 or ndcg@10), `shortlist` those by `shortlist_measure`. With the
    interval of the paired difference to keeping the old model

    - below 0: `keep the old model`;
    - around 0: `undecided`;
    - above 0: `use` where retention reaches its threshold, else `use as first stage` where the shortlist's retention
      reaches its threshold, else `re-embed`.

    Where a random search finds more than half of the shortlist (`chance`), the shortlist is no evidence and does not
    count. `truth` says in the sentence what the measure compares with.
    """
    if deciding.retention is None:
        return not_judged(f"full re-embedding itself scores 0 by {measure}, so there is nothing to keep.", thresholds)
    difference = deciding.over_keep_old
    low, high = difference.interval or (difference.score, difference.score)
    retention = deciding.retention.score
    first_stage = None if shortlist.retention is None else shortlist.retention.score
    numbers = {
        "score": deciding.translated.score,
        "keep_old": deciding.keep_old.score,
        "ceiling": deciding.ceiling.score,
        "over_keep_old": [low, high],
        "retention": retention,
        shortlist_measure: shortlist.translated.score,
        "first_stage": first_stage,
        "first_stage_chance": chance,
    }
    against = (
        f"{measure}{truth} {num(deciding.translated.score)} against {num(deciding.keep_old.score)} for keeping the "
        f"old model (difference {low:+.3f} to {high:+.3f})"
    )
    retains = f"it keeps {_percent(retention)} of full re-embedding"
    fetched = f"the pool is too small to judge its shortlist ({shortlist_measure})"
    enough = False
    if first_stage is not None and chance <= MOST_CHANCE:
        enough = first_stage >= thresholds.first_stage
        fetched = f"its shortlist ({shortlist_measure}) {_percent(first_stage)}"
    if high < 0:
        word, why = "keep the old model", f"{against}: it loses to changing nothing."
    elif not low > 0:
        word, why = "undecided", f"{against}: the interval holds 0; score more queries."
    elif retention >= thresholds.retention:
        word, why = "use", f"{against}, and {retains} (needed: {_percent(thresholds.retention)})."
    elif enough:
        word = "use as first stage"
        why = f"{against}; {retains} (to use it alone: {_percent(thresholds.retention)}), but {fetched}."
    else:
        word = "re-embed"
        needed = f"{_percent(thresholds.retention)}, or a shortlist of {_percent(thresholds.first_stage)}"
        why = f"{against}, but {retains} and {fetched} (needed: {needed})."
    values = {"verdict": word, "why": why, "measure": measure, "numbers": numbers, "thresholds": asdict(thresholds)}
    return Verdict(values)


def not_judged(why: str, thresholds: Thresholds) -> Verdict:
    """The verdict on a use that cannot be judged, and why not."""
    return Verdict({"verdict": "not judged", "why": why, "thresholds": asdict(thresholds)})


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
