"""TODO workflows.study_report."""

from collections.abc import Iterator

from repstitch.alignment.lineage import without_layer
from repstitch.text import num
from repstitch.workflows.study_file import Experiment


def findings(atlas: dict, groups: dict[str, str]) -> list[str]:
    """What an atlas says, in sentences: how alike the groups are by each metric, then trend and control."""
    lines, order = [], list(dict.fromkeys(groups.values()))
    for metric in atlas["metrics"]:
        by_groups: dict[tuple, list] = {}
        for pair in _pairs(atlas, metric):
            both = {_group(pair["source"], groups), _group(pair["target"], groups)}
            by_groups.setdefault(tuple(group for group in order if group in both), []).append(pair)
        for both, pairs in by_groups.items():
            where = f"within {both[0]}" if len(both) == 1 else f"between {both[0]} and {both[1]}"
            lines.append(f"{metric}, {where}: {_range(pairs)}")
    lines += [f"{key}: {atlas[key]['verdict']}" for key in ("trend", "control") if key in atlas]
    return lines + [f"{key}: not answered. {reason}" for key, reason in atlas.get("unanswered", {}).items()]


def _range(pairs: list[dict]) -> str:
    best = max(pairs, key=lambda pair: pair["score"])
    mean = sum(pair["score"] for pair in pairs) / len(pairs)
    several = f"mean {num(mean)} over {len(pairs)} pairs, highest " if len(pairs) > 1 else ""
    text = f"{several}{num(best['score'])} ({_called(best)})"
    if best.get("q") is None:
        return text + "."
    above = sum(pair["q"] <= LEVEL for pair in pairs)
    chance = sum(pair["null"] for pair in pairs) / len(pairs)
    return f"{text}; by chance {num(chance)}; {above} of {len(pairs)} beyond chance (q ≤ {LEVEL})."


def _pairs(atlas: dict, metric: str) -> Iterator[dict]:
    """The pairs of encoders by a metric, each once where it is symmetric: over layers the best, where there are any."""
    seen = set()
    for pair in atlas.get("layers") or atlas["pairs"]:
        both = (pair["source"], pair["target"])
        key = frozenset(both) if atlas["metrics"][metric]["symmetric"] else both
        if pair["metric"] == metric and pair["score"] is not None and both[0] != both[1] and key not in seen:
            seen.add(key)
            yield pair


def _group(name: str, groups: dict[str, str]) -> str:
    return groups[name] if name in groups else groups[without_layer(name)]


def _called(pair: dict) -> str:
    sides = []
    for side in ("source", "target"):
        layer = pair.get(f"{side}_layer")
        sides.append(pair[side] + ("" if layer is None else f" layer {layer}"))
    return " – ".join(sides)


def setting(atlas: dict, experiment: Experiment) -> str:
    null = f"beside the null of {experiment.permutations} permutations" if experiment.permutations else "without a null"
    return f"{len(atlas['spaces'])} spaces over {atlas['n']:,} items that all of them have, k = {atlas['k']}, {null}."


def strongest(atlas: dict, n: int = 10) -> str:
    metric = next(iter(atlas["metrics"]))
    rows = sorted(_pairs(atlas, metric), key=lambda pair: -pair["score"])[:n]
    cell = lambda value: "" if value is None else num(value)  # noqa: E731
    columns = ("score", "null", "calibrated", "q")
    lines = [f"| {metric} | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {_called(row)} | " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def summary(results: dict) -> str:
    """The results of `run` as text: each experiment, what was found, what is missing, where the report lies."""
    parts = []
    for name, result in results.items():
        lines = [name, *(f"  {line}" for line in result["findings"])]
        lines += [f"  left out: {encoder}: {reason}" for encoder, reason in result["missing"].items()]
        parts.append("\n".join([*lines, f"  report: {result['report']}"]))
    return "\n\n".join(parts)


LEVEL = 0.05
