# pyright: strict
"""The verdict on a translation, from its scores and those of the references."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from repstitch.evaluation.thresholds import MOST_CHANCE, Thresholds
from repstitch.evaluation.use_scores import ReferenceScores, Verdict, measure_name
from repstitch.metrics.delete_one import Ratio, RowScores
from repstitch.names import VerdictWord
from repstitch.records import Estimate
from repstitch.text import ends, num

MIN_QUERIES = 20


def compare_with_references(rows: Mapping[str, RowScores]) -> ReferenceScores:
    """Return mean scores with 95 % intervals.

    `rows` has the scores of `translated`, `keep_old`, `ceiling` and optional further references, each for the same
    queries, so differences and ratios are paired.
    """
    translated, ceiling = rows["translated"], rows["ceiling"]
    compared = dict(rows) | {"over_keep_old": translated.minus(rows["keep_old"])}
    scores: dict[str, Any] = {name: _estimate(scored) for name, scored in compared.items()}
    scores["retention"] = _estimate(translated.over(ceiling)) if ceiling.mean > 0 else None
    return ReferenceScores(scores)


def _estimate(scored: RowScores | Ratio) -> dict[str, Any]:
    return {"score": scored.mean, "interval": scored.interval()}


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

    `deciding` has the scores by `measure` (overlap@10 or ndcg@10), `shortlist` those by `shortlist_measure`. See
    `_judge` for the rule. The shortlist is ignored if `chance`, the score of a random shortlist, is above one half.
    `truth` is a phrase for the explanation that names the true neighbours.
    """
    if deciding.retention is None:
        return not_judged(
            f"full re-embedding itself scores 0 in {measure}, so there is nothing to compare with.", thresholds
        )
    low, high = _bounds(deciding.over_keep_old)
    retention, first_stage = deciding.retention, shortlist.retention
    listed = first_stage is not None and chance <= MOST_CHANCE
    numbers = {
        "score": deciding.translated.score,
        "keep_old": deciding.keep_old.score,
        "ceiling": deciding.ceiling.score,
        "reranked": None if deciding.reranked is None else deciding.reranked.score,
        "over_keep_old": [low, high],
        "retention": retention.score,
        "retention_interval": list(_bounds(retention)),
        shortlist_measure: shortlist.translated.score,
        "first_stage": None if first_stage is None else first_stage.score,
        "first_stage_interval": None if first_stage is None else list(_bounds(first_stage)),
        "first_stage_chance": chance,
    }
    against = (
        f"{measure_name(measure)}{truth} {num(deciding.translated.score)} against {num(deciding.keep_old.score)} for "
        f"keeping the old model (difference {' to '.join(ends(low, high, sign='+'))})"
    )
    kept = _shares(retention, thresholds.retention)
    retains = f"it keeps {kept} of full re-embedding (threshold: {100 * thresholds.retention:g} %)"
    fetched = f"the pool is too small to judge the shortlist ({measure_name(shortlist_measure)})"
    if first_stage is not None and listed:
        fetched = (
            f"the shortlist ({measure_name(shortlist_measure)}) keeps {_shares(first_stage, thresholds.first_stage)} "
        )
        fetched += f"(threshold: {100 * thresholds.first_stage:g} %)"
    if thresholds.old_model == "gone":
        against = f"judged against re-embedding alone, because the old model is gone: {against}"
    word, sure = _judge(
        None if thresholds.old_model == "gone" else (low, high),
        _above(retention, thresholds.retention),
        _above(first_stage if listed else None, thresholds.first_stage),
    )
    enough, as_first_stage = f"{against}, and {retains}.", f"{against}; {retains}, but {fetched}."
    why = {
        "keep the old model": f"{against}: the translation is worse than keeping the old model.",
        "undecided": f"{against}: the interval contains 0; score more queries. If the old model has to go, judge "
        f"against re-embedding alone with `old_model`: {retains}.",
        "use": enough,
        "probably use": enough,
        "use as first stage": as_first_stage,
        "probably use as first stage": as_first_stage,
        "re-embed": f"{against}, but {retains} and {fetched}.",
    }[word]
    values = {"verdict": word, "why": why, "sure": sure, "measure": measure}
    return Verdict(values | {"numbers": numbers, "thresholds": asdict(thresholds)})


def _bounds(scored: Estimate) -> tuple[float, float]:
    return scored.interval or (scored.score, scored.score)


class _Margin(NamedTuple):
    """How far a share and the ends of its interval are above a threshold."""

    low: float
    score: float
    high: float


def _above(share: Estimate | None, threshold: float) -> _Margin:
    if share is None:
        return _Margin(-math.inf, -math.inf, -math.inf)
    low, high = _bounds(share)
    return _Margin(low - threshold, share.score - threshold, high - threshold)


def _judge(difference: tuple[float, float] | None, whole: _Margin, shortlist: _Margin) -> tuple[VerdictWord, bool]:
    """Return the verdict, and whether the shares that decide it are beyond their thresholds with their whole intervals.

    `difference` is the interval of the translation's lead over the old model, or None if that model is gone. `whole`
    and `shortlist` are the margins of the shares of full re-embedding over their thresholds.
    """
    if difference is not None:
        low, high = difference
        if high < 0:
            return "keep the old model", True
        if not low > 0:
            return "undecided", True
    if whole.low >= 0:
        return "use", True
    if shortlist.low >= 0:
        return "use as first stage", True
    if whole.score >= 0:
        return "probably use", False
    if shortlist.score >= 0:
        return "probably use as first stage", False
    return "re-embed", max(whole.high, shortlist.high) < 0


def not_judged(why: str, thresholds: Thresholds) -> Verdict:
    """Return the verdict `not judged`, with the reason why a use cannot be judged."""
    return Verdict({"verdict": "not judged", "why": why, "sure": False, "thresholds": asdict(thresholds)})


def _shares(share: Estimate, threshold: float) -> str:
    """Return a share with its interval, in percent."""
    low, high = _bounds(share)
    missed = share.score < threshold <= round(share.score, 3)  # rounding would lift it to its threshold
    score = math.floor(1000 * share.score) / 10 if missed else 100 * share.score
    return f"{score:.1f} % ({' to '.join(ends(100 * low, 100 * high, 1))} %)"
