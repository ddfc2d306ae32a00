"""Is this translation worth using? Scores beside their references, and the answer in words and numbers."""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from repstitch.evaluation.thresholds import Thresholds
from repstitch.metrics.resample import interval, resampled_means
from repstitch.text import num

MIN_QUERIES = 20
MOST_CHANCE = 0.5  # of a shortlist; beyond it, a poor map fills it nearly as well as a good one


def standing(rows: Mapping[str, np.ndarray], seed: int = 0) -> dict:
    """Scores with 95 % intervals, from values (n,) a query of `translated`, `keep_old`, `ceiling` and more references.

    Returns {"score", "interval"} for each, and for `over_keep_old` (translated less keep_old) and `retention`
    (translated over ceiling; None where the ceiling is 0). All intervals are of the same resampled queries.
    """
    names = list(rows)
    values = np.column_stack([np.asarray(rows[name], dtype=np.float64) for name in names])
    means = dict(zip(names, values.mean(0), strict=True))
    draws = dict(zip(names, resampled_means(values, seed=seed).T, strict=True))
    found: dict = {name: {"score": float(means[name]), "interval": interval(draws[name])} for name in names}
    found["over_keep_old"] = {
        "score": float(means["translated"] - means["keep_old"]),
        "interval": interval(draws["translated"] - draws["keep_old"]),
    }
    found["retention"] = None
    if means["ceiling"] > 0:
        ceiling = np.where(draws["ceiling"] > 0, draws["ceiling"], np.nan)
        found["retention"] = {
            "score": float(means["translated"] / means["ceiling"]),
            "interval": interval(draws["translated"] / ceiling),
        }
    return found


def verdict(
    measure: str,
    deciding: Mapping,
    shortlist_measure: str,
    shortlist: Mapping,
    thresholds: Thresholds,
    chance: float,
    against_what: str = "",
) -> dict:
    """The verdict on one use: {"verdict", "why", "measure", "numbers", "thresholds"}.

    `deciding` and `shortlist` are `standing`s by `measure` (overlap@10 or ndcg@10) and `shortlist_measure`. With the
    interval of the paired difference to keeping the old model

    - below 0: `keep the old model`;
    - around 0: `undecided`;
    - above 0: `use` where retention reaches its threshold, else `use as first stage` where the shortlist's retention
      reaches its own, else `re-embed`.

    A shortlist of which random search would find more than half (`chance`) is no evidence, so it is not counted.
    `against_what` says in the sentence what the measure compares with.
    """
    low, high = deciding["over_keep_old"]["interval"]
    kept, short = (part["retention"] and part["retention"]["score"] for part in (deciding, shortlist))
    numbers = {
        "score": deciding["translated"]["score"],
        "keep_old": deciding["keep_old"]["score"],
        "ceiling": deciding["ceiling"]["score"],
        "over_keep_old": [low, high],
        "retention": kept,
        shortlist_measure: shortlist["translated"]["score"],
        "first_stage": short,
        "first_stage_chance": chance,
    }
    if kept is None:
        return not_judged(f"full re-embedding itself scores 0 by {measure}, so there is nothing to keep.", thresholds)
    against = (
        f"{measure}{against_what} {num(numbers['score'])} against {num(numbers['keep_old'])} for keeping the old "
        f"model (difference {low:+.3f} to {high:+.3f})"
    )
    retains = f"it keeps {_percent(kept)} of full re-embedding"
    fetched = f"the pool is too small to judge its shortlist ({shortlist_measure})"
    enough = False
    if short is not None and chance <= MOST_CHANCE:
        enough = short >= thresholds.first_stage
        fetched = f"its shortlist ({shortlist_measure}) {_percent(short)}"
    if high < 0:
        word, why = "keep the old model", f"{against}: it loses to changing nothing."
    elif not low > 0:
        word, why = "undecided", f"{against}: the interval holds 0; score more queries."
    elif kept >= thresholds.retention:
        word, why = "use", f"{against}, and {retains} (needed: {_percent(thresholds.retention)})."
    elif enough:
        word = "use as first stage"
        why = f"{against}; {retains} (to use it alone: {_percent(thresholds.retention)}), but {fetched}."
    else:
        word = "re-embed"
        needed = f"{_percent(thresholds.retention)}, or a shortlist of {_percent(thresholds.first_stage)}"
        why = f"{against}, but {retains} and {fetched} (needed: {needed})."
    return {"verdict": word, "why": why, "measure": measure, "numbers": numbers, "thresholds": asdict(thresholds)}


def not_judged(why: str, thresholds: Thresholds) -> dict:
    """The verdict on a use that cannot be judged, saying why."""
    return {"verdict": "not judged", "why": why, "thresholds": asdict(thresholds)}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
