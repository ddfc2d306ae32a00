"""The results of a study as text: the findings in sentences, the report of an experiment, the summary of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repstitch.alignment.lineage import without_layer
from repstitch.alignment.result import AlignmentScore, Atlas, LayerScore
from repstitch.records import LEVEL
from repstitch.text import num
from repstitch.workflows.study_file import Experiment, Study


@dataclass(frozen=True)
class StudyResult:
    """The result of one experiment.

    `atlas` has the alignment scores, `missing` the encoders that could not be loaded with the reason, `findings` the
    results in sentences. `report` is the path of REPORT.md.
    """

    atlas: Atlas
    missing: dict[str, str] = field(hash=False)
    findings: list[str] = field(hash=False)
    report: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON types."""
        return {
            "atlas": self.atlas.to_dict(),
            "missing": self.missing,
            "findings": self.findings,
            "report": self.report,
        }


def findings(atlas: Atlas, groups: Mapping[str, str]) -> list[str]:
    """Summarise an atlas in sentences: the alignment within and between groups by each metric, then trend and control.

    `groups` has the group of each encoder, by the encoder's name.
    """
    lines, order = [], list(dict.fromkeys(groups.values()))
    for metric in atlas.metrics:
        by_groups: dict[tuple[str, ...], list[AlignmentScore]] = {}
        for pair in _pairs(atlas, metric):
            both = {_group(pair.source, groups), _group(pair.target, groups)}
            by_groups.setdefault(tuple(group for group in order if group in both), []).append(pair)
        for names, pairs in by_groups.items():
            which = f"within {names[0]}" if len(names) == 1 else f"between {names[0]} and {names[1]}"
            lines.append(f"{metric}, {which}: {_range(pairs)}")
    lines += [f"trend: {atlas.trend.verdict}"] if atlas.trend is not None else []
    lines += [f"control: {atlas.control.verdict}"] if atlas.control is not None else []
    return lines + [f"{test}: not tested. {reason}" for test, reason in atlas.unanswered.items()]


def _range(pairs: list[AlignmentScore]) -> str:
    best = max(pairs, key=float)
    mean = sum(map(float, pairs)) / len(pairs)
    several = f"mean {num(mean)} over {len(pairs)} pairs, highest " if len(pairs) > 1 else ""
    text = f"{several}{num(best.score)} ({_pair_name(best)})"
    if best.q is None:
        return text + "."
    above = sum(pair.q is not None and pair.q <= LEVEL for pair in pairs)
    chance = sum(pair.null or 0.0 for pair in pairs) / len(pairs)
    return f"{text}; expected by chance {num(chance)}; {above} of {len(pairs)} above chance (q ≤ {LEVEL})."


def _pairs(atlas: Atlas, metric: str) -> Iterator[AlignmentScore]:
    """Yield the score of each pair of encoders by a metric, at their best layers; once if the metric is symmetric."""
    earlier = set()
    for pair in atlas.layers or atlas.pairs(metric):
        both = (pair.source, pair.target)
        key = frozenset(both) if atlas.symmetric(metric) else both
        if pair.metric == metric and pair.score is not None and both[0] != both[1] and key not in earlier:
            earlier.add(key)
            yield pair


def _group(name: str, groups: Mapping[str, str]) -> str:
    return groups[name] if name in groups else groups[without_layer(name)]


def _pair_name(pair: AlignmentScore) -> str:
    layers = (pair.source_layer, pair.target_layer) if isinstance(pair, LayerScore) else (None, None)
    names = zip((pair.source, pair.target), layers, strict=True)
    return " – ".join(name if layer is None else f"{name} layer {layer}" for name, layer in names)


def report(study: Study, experiment: Experiment, result: StudyResult, figures: list[Path]) -> str:
    """Return the report of an experiment in Markdown."""
    parts = [f"# {experiment.name}", study.about, _setting(result.atlas, experiment)]
    parts += ["## Findings", "\n".join(f"- {line}" for line in result.findings)]
    parts += ["## Highest scores", _strongest(result.atlas)]
    if result.missing:
        parts += ["## Encoders left out", "\n".join(f"- {name}: {reason}" for name, reason in result.missing.items())]
    parts += [f"![{path.stem}]({path.name})" for path in figures if path.suffix in (".png", ".svg")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(atlas: Atlas, experiment: Experiment) -> str:
    null = f"null from {experiment.permutations} permutations" if experiment.permutations else "no null distribution"
    return f"{len(atlas.names)} spaces, {atlas.n:,} items that all of them contain; k = {atlas.k}; {null}."


def _strongest(atlas: Atlas, n: int = 10) -> str:
    """Return a Markdown table of the highest scores by the first metric."""
    metric = atlas.metrics[0]
    measures = ("score", "null", "calibrated", "q")
    lines = [f"| {metric} | " + " | ".join(measures) + " |", "|---|" + "---:|" * len(measures)]
    for pair in sorted(_pairs(atlas, metric), key=float, reverse=True)[:n]:
        values = [getattr(pair, measure) for measure in measures]
        cells = ["" if value is None else num(value) for value in values]
        lines.append(f"| {_pair_name(pair)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results: Mapping[str, StudyResult]) -> str:
    """Return the results of `run` as text: each experiment with its findings, missing encoders and report's path."""
    parts = []
    for name, result in results.items():
        lines = [name, *(f"  {line}" for line in result.findings)]
        lines += [f"  left out: {encoder}: {reason}" for encoder, reason in result.missing.items()]
        parts.append("\n".join([*lines, f"  report: {result.report}"]))
    return "\n\n".join(parts)
