# pyright: strict
"""Summarise a scorecard in about ten lines: the verdict and advice for each use, then the five numbers behind them."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from repstitch.evaluation.report import Block, Uses
from repstitch.evaluation.scorecard_parts import CalibrationScores
from repstitch.evaluation.thresholds import MOST_CHANCE
from repstitch.evaluation.use_scores import (
    OVER_QUERIES_ONLY,
    Comparison,
    RecallScores,
    References,
    Relevance,
    UseScores,
    Verdict,
    measure_name,
)
from repstitch.text import num


@dataclass(frozen=True)
class Roles:
    """Which space is the old model's and which the new one's in a use. Names are None in cards of earlier releases."""

    title: str
    old: str | None
    new: str | None


def roles(use: str, source: str | None, target: str | None) -> Roles:
    """Return the roles of the two spaces in a use.

    In query use the source is the new model, whose queries search the old index. In corpus use the target is the new
    model, whose queries search the translated old index.
    """
    if not source or not target:
        titles = {
            "query": "QUERY USE (translated queries, native index)",
            "corpus": "CORPUS USE (translated index, native queries)",
        }
        return Roles(titles[use], None, None)
    if use == "query":
        return Roles(f"QUERY USE ({source} queries, {target} index)", target, source)
    return Roles(f"CORPUS USE (translated {source} index, {target} queries)", source, target)


def verdict_lines(uses: Uses, source: str | None, target: str | None) -> Iterable[Block]:
    """Yield one line for each use: its verdict and the advice. `source` and `target` are the names of the spaces."""
    for use, scores in uses.items():
        spaces = roles(use, source, target)
        if "verdict" in scores:
            old = f" ({OVER_QUERIES_ONLY})" if scores.verdict.over_queries_only else ""
            yield f"{spaces.title}: {scores.verdict}{old}. {advice(scores.verdict, spaces.old, spaces.new)}"
        else:
            yield f"{spaces.title}: no verdict (an earlier release wrote these scores). Score the stitcher again."


def advice(verdict: Verdict, old: str | None = None, new: str | None = None) -> str:
    """Return one or two sentences that explain a verdict in practical terms, with the shares that decided it.

    `old` and `new` are the names of the spaces of the old and of the new model.
    """
    numbers = verdict.numbers
    shortlist = next((name for name in numbers if re.fullmatch(r"(top\d+_in_|recall@)\d+", name)), None)
    shown = ("score", "keep_old", "ceiling", "first_stage", "first_stage_chance")
    complete = all(_is_finite(numbers.get(name)) for name in shown) and numbers["ceiling"] > 0
    measure = verdict.measure or ""
    if not re.fullmatch(r"(overlap|ndcg)@\d+", measure) or shortlist is None or not complete:
        return _capitalised(verdict.why)
    score, keep_old, ceiling = numbers["score"], numbers["keep_old"], numbers["ceiling"]
    k, depth = _last_number(measure), _last_number(shortlist)
    thresholds = verdict.thresholds
    kept = _percent(score / ceiling, thresholds.retention)
    kept_by_old, share = _percent(keep_old / ceiling), _percent(numbers["first_stage"], thresholds.first_stage)
    by_overlap = measure.startswith("overlap")
    re_embedding = "re-embedding" if new is None else f"re-embedding with {new}"
    old_model = "the old model" if old is None else f"the old model ({old})"
    all_found = f"the neighbours that {re_embedding} finds" if by_overlap else f"the nDCG@{k} of {re_embedding}"
    listed = all_found if by_overlap else f"the {shortlist} of {re_embedding}"
    fetched = "the scored pool is too small to judge a longer list"
    if numbers["first_stage_chance"] <= MOST_CHANCE:
        fetched = f"the first {depth} keep {share}"
    keep = f"{_capitalised(old_model)} keeps {kept_by_old} of {all_found}; the translation only {kept}."
    if keep_old > ceiling:  # by relevance judgements the new model can be the worse one
        better = f"{_capitalised(old_model)} scores higher ({num(keep_old)}) than {re_embedding} ({num(ceiling)})"
        keep = f"{better} by {measure_name(measure)}; the translation has {num(score)}."
    more = f"Score more {'pairs' if by_overlap else 'judged queries'}"
    use = f"The first {k} results keep {kept} of {all_found}; keeping {old_model} keeps {kept_by_old}."
    rerank = f"Fetch {depth} and rerank: they keep {share} of {listed}; the first {k} alone {kept}."
    rival = ""
    if _is_finite(numbers.get("reranked")):
        new_model = "the new model" if new is None else new
        rival = (
            f" Without a map, the first {depth} of {old_model} reranked with {new_model} keep "
            f"{_percent(numbers['reranked'] / ceiling)} of {all_found}, at the price of {depth} documents embedded "
            f"with {new_model} for each query, or of native vectors of all documents kept."
        )
    re_embed = f"The first {k} results keep only {kept} of {all_found} ({old_model} {kept_by_old}); {fetched}."
    sentences = {
        "use": use,
        "use as first stage": f"{rerank}{rival}",
        "probably use": f"{use} {more} to be sure that this is at least {100 * thresholds.retention:g} %.",
        "probably use as first stage": (
            f"{rerank} {more} to be sure that the first {depth} keep at least {100 * thresholds.first_stage:g} %."
            f"{rival}"
        ),
        "re-embed": re_embed if verdict.sure else f"{re_embed} {more} to be sure that it is not enough.",
        "keep the old model": keep,
        "undecided": (
            f"The first {k} results keep {kept} of {all_found}, {old_model} {kept_by_old}: too close to tell apart. "
            f"{more}."
        ),
    }
    return sentences.get(verdict.verdict, _capitalised(verdict.why))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _last_number(name: str) -> int:
    """Return the number that a measure's name ends in: 100 for top10_in_100."""
    return int(re.findall(r"\d+", name)[-1])


def _percent(share: float, threshold: float = 1.0) -> str:
    """Return a share in whole percent, or with one decimal where rounding would lift it to a threshold it missed."""
    missed = any(share < limit and round(100 * share) >= 100 * limit for limit in (threshold, 1.0))
    return f"{math.floor(1000 * share + 1e-6) / 10:.1f} %" if missed else f"{100 * share:.0f} %"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def key_numbers(title: str, uses: Uses, relevance: Relevance | None, chance: RecallScores) -> Block:
    """Return the five numbers behind the verdicts as a table, one column for each use."""
    comparisons = {use: _deciding(use, scores, relevance) for use, scores in uses.items()}
    first = next((comparison for comparison in comparisons.values() if comparison is not None), None)
    rows: list[tuple[str, ...]] = [(title, *(f"{use} use" for use in uses), "chance")]
    for i, measure in enumerate([] if first is None else list(first.measures)[:2]):
        at_random = first.chance.get(measure) if isinstance(first, References) else None
        by_chance = "" if at_random is None else num(at_random)
        judged = "" if relevance is None else f" ({_judged(relevance)})"
        rows.append((measure_name(measure) + judged, *_cells(comparisons, measure, "translated"), by_chance))
        if i == 0:
            rows.append(("  by keeping the old model", *_cells(comparisons, measure, "keep_old"), ""))
    for k, place in ((1, "comes first"), (10, "in the first 10")):
        label = f"the counterpart {place} (recall@{k})"
        rows.append((label, *(str(use.recall_at(k)) for use in uses.values()), num(chance.recall_at(k).score)))
    return rows


def _judged(relevance: Relevance) -> str:
    deciding = relevance.deciding
    queries = max(scores.queries for scores in deciding.uses.values())
    unseen = "" if deciding is relevance else " that did not train"
    return f"{queries:,} queries, {deciding.documents:,} documents{unseen}"


def _deciding(use: str, scores: UseScores, relevance: Relevance | None) -> Comparison | None:
    """Return the comparison that decided the verdict: by relevance judgements if there are any, else by neighbours."""
    return scores.references if relevance is None else relevance.deciding.uses.get(use, scores.references)


def _cells(comparisons: Mapping[str, Comparison | None], measure: str, reference: str) -> list[str]:
    measures = [{} if comparison is None else comparison.measures for comparison in comparisons.values()]
    return [str(scores[measure].get(reference)) if measure in scores else "-" for scores in measures]


def warning_lines(notes: list[str], confidence: CalibrationScores | None) -> Iterable[Block]:
    """Yield the number of warnings with the first of them, and the reason if the confidence cannot be used."""
    if notes:
        yield f"{len(notes)} warning{'s' if len(notes) > 1 else ''} on the pairs: {notes[0]}"
    if confidence is not None and confidence.usable is False:
        yield f"Confidence not usable: {confidence.reason or 'it was not tested enough'}."
