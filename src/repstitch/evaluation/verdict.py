# pyright: strict
"""The verdict on a translation, from its scores and those of the references."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from repstitch.evaluation.thresholds import MOST_CHANCE, Thresholds
from repstitch.evaluation.use_scores import ReferenceScores, Verdict, measure_name
from repstitch.metrics.resample import interval, resampled_means
from repstitch.text import num

MIN_QUERIES = 20


def compare_with_references(rows: Mapping[str, np.ndarray], seed: int = 0) -> ReferenceScores:
    """Return mean scores with 95 % intervals from the scores (n,) of the queries.

    `rows` has the scores of `translated`, `keep_old`, `ceiling` and optional further references. All intervals use the
    same resampled queries, so differences and ratios are paired.
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
    """Return the verdict on one use.

    `deciding` has the scores by `measure` (overlap@10 or ndcg@10), `shortlist` those by `shortlist_measure`. The
    verdict depends on the interval of the paired difference between the translation and keeping the old model:

    - entirely below 0: `keep the old model`;
    - contains 0: `undecided`;
    - entirely above 0: `use` if the translation's retention reaches its threshold. Otherwise `use as first stage` if
      the shortlist's retention reaches its threshold. Otherwise `re-embed`.

    The shortlist is ignored if `chance`, the score of a random shortlist, is above one half. `truth` is a phrase for
    the explanation that names the true neighbours.
    """
    if deciding.retention is None:
        return not_judged(
            f"full re-embedding itself scores 0 in {measure}, so there is nothing to compare with.", thresholds
        )
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
        f"{measure_name(measure)}{truth} {num(deciding.translated.score)} against {num(deciding.keep_old.score)} for "
        f"keeping the old model (difference {low:+.3f} to {high:+.3f})"
    )
    retains = f"it keeps {_percent(retention)} of full re-embedding"
    fetched = f"the pool is too small to judge the shortlist ({measure_name(shortlist_measure)})"
    enough = False
    if first_stage is not None and chance <= MOST_CHANCE:
        enough = first_stage >= thresholds.first_stage
        fetched = f"the shortlist ({measure_name(shortlist_measure)}) keeps {_percent(first_stage)}"
    if high < 0:
        word, why = "keep the old model", f"{against}: the translation is worse than keeping the old model."
    elif not low > 0:
        word, why = "undecided", f"{against}: the interval contains 0; score more queries."
    elif retention >= thresholds.retention:
        word, why = "use", f"{against}, and {retains} (threshold: {_percent(thresholds.retention)})."
    elif enough:
        word = "use as first stage"
        why = f"{against}; {retains} (threshold of `use`: {_percent(thresholds.retention)}), but {fetched}."
    else:
        word = "re-embed"
        needed = f"{_percent(thresholds.retention)}, or {_percent(thresholds.first_stage)} for the shortlist"
        why = f"{against}, but {retains} and {fetched} (thresholds: {needed})."
    values = {"verdict": word, "why": why, "measure": measure, "numbers": numbers, "thresholds": asdict(thresholds)}
    return Verdict(values)


def not_judged(why: str, thresholds: Thresholds) -> Verdict:
    """Return the verdict `not judged`, with the reason why a use cannot be judged."""
    return Verdict({"verdict": "not judged", "why": why, "thresholds": asdict(thresholds)})


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
