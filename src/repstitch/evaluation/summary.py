# pyright: strict
"""Summarise a scorecard in about ten lines: the verdict and advice for each use, then the five numbers behind them."""

import re
from collections.abc import Iterable, Mapping

from repstitch.evaluation.report import Block, Uses, measure_name
from repstitch.evaluation.scorecard_parts import CalibrationScores
from repstitch.evaluation.thresholds import MOST_CHANCE
from repstitch.evaluation.use_scores import Comparison, RecallScores, References, Relevance, UseScores, Verdict
from repstitch.records import is_number
from repstitch.text import num

USE_TITLES = {
    "query": "QUERY USE (new queries, old index)",
    "corpus": "CORPUS USE (translated index, new queries)",
}


def verdict_lines(uses: Uses) -> Iterable[Block]:
    """Yield one line for each use: its verdict and the advice."""
    for use, scores in uses.items():
        if "verdict" in scores:
            yield f"{USE_TITLES[use]}: {scores.verdict}. {advice(scores.verdict)}"
        else:
            yield f"{USE_TITLES[use]}: no verdict (an earlier release wrote these scores). Score the stitcher again."


def advice(verdict: Verdict) -> str:
    """Return one or two sentences that explain a verdict in practical terms, with the shares that decided it."""
    numbers = verdict.numbers
    shortlist = next((name for name in numbers if re.fullmatch(r"(top\d+_in_|recall@)\d+", name)), None)
    shown = ("score", "keep_old", "ceiling", "first_stage", "first_stage_chance")
    complete = all(is_number(numbers.get(name)) for name in shown) and numbers["ceiling"] > 0
    measure = verdict.measure or ""
    if not re.fullmatch(r"(overlap|ndcg)@\d+", measure) or shortlist is None or not complete:
        return verdict.why[:1].upper() + verdict.why[1:]
    ceiling, k, depth = numbers["ceiling"], _last_number(measure), _last_number(shortlist)
    kept, old = _percent(numbers["score"] / ceiling), _percent(numbers["keep_old"] / ceiling)
    by_overlap = measure.startswith("overlap")
    all_found = "the neighbours that re-embedding finds" if by_overlap else f"re-embedding's {measure_name(measure)}"
    listed = "the neighbours that re-embedding finds" if by_overlap else f"re-embedding's {measure_name(shortlist)}"
    share = _percent(numbers["first_stage"])
    fetched = "the scored pool is too small to judge a longer list"
    if numbers["first_stage_chance"] <= MOST_CHANCE:
        fetched = f"the first {depth} keep {share}"
    sentences = {
        "use": f"The first {k} results keep {kept} of {all_found}; keeping the old model keeps {old}.",
        "use as first stage": (f"Fetch {depth} and rerank: they keep {share} of {listed}; the first {k} alone {kept}."),
        "re-embed": f"The first {k} results keep only {kept} of {all_found} (the old model {old}); {fetched}.",
        "keep the old model": f"It keeps {old} of {all_found}; the translation keeps only {kept}.",
        "undecided": (
            f"The first {k} results keep {kept} of {all_found}, the old model {old}: too close to tell apart on so few "
            "queries. Score more pairs."
        ),
    }
    return sentences.get(verdict.verdict, verdict.why)


def _last_number(name: str) -> int:
    """Return the number that a measure's name ends in: 100 for top10_in_100."""
    return int(re.findall(r"\d+", name)[-1])


def _percent(share: float) -> str:
    rounded = round(100 * share)
    return f"over {rounded - 1} %" if rounded == 100 and share < 1 else f"{rounded} %"


def key_numbers(title: str, uses: Uses, relevance: Relevance | None, chance: RecallScores) -> Block:
    """Return the five numbers behind the verdicts as a table, one column for each use."""
    comparisons = {use: _deciding(use, scores, relevance) for use, scores in uses.items()}
    first = next((comparison for comparison in comparisons.values() if comparison is not None), None)
    rows: list[tuple[str, ...]] = [(title, *(f"{use} use" for use in uses), "chance")]
    for i, measure in enumerate([] if first is None else list(first.measures)[:2]):
        at_random = first.chance.get(measure) if isinstance(first, References) else None
        by_chance = "" if at_random is None else num(at_random)
        rows.append((measure_name(measure), *_cells(comparisons, measure, "translated"), by_chance))
        if i == 0:
            rows.append(("  by keeping the old model", *_cells(comparisons, measure, "keep_old"), ""))
    for k, place in ((1, "comes first"), (10, "in the first 10")):
        label = f"the counterpart {place} (recall@{k})"
        rows.append((label, *(str(use.recall_at(k)) for use in uses.values()), num(chance.recall_at(k).score)))
    return rows


def _deciding(use: str, scores: UseScores, relevance: Relevance | None) -> Comparison | None:
    """Return the comparison that decided the verdict: by relevance judgements if there are any, else by neighbours."""
    return scores.references if relevance is None else relevance.uses.get(use)


def _cells(comparisons: Mapping[str, Comparison | None], measure: str, reference: str) -> list[str]:
    measures = [{} if comparison is None else comparison.measures for comparison in comparisons.values()]
    return [str(scores[measure].get(reference)) if measure in scores else "-" for scores in measures]


def warning_lines(notes: list[str], confidence: CalibrationScores | None) -> Iterable[Block]:
    """Yield the number of warnings with the first of them, and the reason if the confidence cannot be used."""
    if notes:
        yield f"{len(notes)} warning{'s' if len(notes) > 1 else ''} on the pairs: {notes[0]}"
    if confidence is not None and confidence.usable is False:
        yield f"The confidence of single translations is not usable: {confidence.reason}."
