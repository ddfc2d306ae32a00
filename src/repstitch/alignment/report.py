"""The atlas as readable text: aligned columns for a terminal, or Markdown."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from repstitch.records import LEVEL
from repstitch.text import columns, markdown_table, num

NAMES_IN_MATRIX = 8  # the largest number of spaces that are shown as a matrix
WIDEST = 80  # the largest number of characters of all names in the header of a matrix
LINES = 20
NEAREST = 3
MEASURES = ("score", "null", "p", "q", "calibrated", "se")
COLUMNS = ("source", "target", "metric", *MEASURES)


class Grid(NamedTuple):
    """Rows of cells. The first row is the header; the first `text` columns contain names, the others numbers."""

    rows: Sequence[tuple]
    text: int = 1


def table(values: Mapping[str, Any]) -> str:
    """Return an atlas (as a JSON object) as aligned text.

    Two spaces give one line per metric. More spaces give, for each metric, a matrix or the most similar pairs, followed
    by layers, sizes and verdicts if the atlas has them.
    """
    return "\n\n".join(
        "\n".join(columns(part.rows, part.text) if isinstance(part, Grid) else part for part in block)
        for block in _blocks(values)
    )


def markdown(values: Mapping[str, Any]) -> str:
    """Return the content of `table` in Markdown."""
    return "\n\n".join(
        markdown_table(part.rows, part.text) if isinstance(part, Grid) else part
        for block in _blocks(values)
        for part in block
    )


def _blocks(values: Mapping[str, Any]) -> Iterator[Sequence[str | Grid]]:
    """Yield the blocks of the report; the parts of a block belong together."""
    names, metrics = [space["name"] for space in values["spaces"]], list(values["metrics"])
    if len(names) == 2:
        yield [_pair_line(pair, values) for pair in values["pairs"]]
    else:
        null = f", {values['permutations']} permutations" if values["permutations"] else ""
        yield [f"{len(names)} spaces, n = {values['n']}{null}"]
        show = _matrix if len(names) <= NAMES_IN_MATRIX and sum(map(len, names)) <= WIDEST else _pairs
        for metric in metrics:
            yield show(values, metric)
        if len(names) <= LINES:
            yield _nearest(values, metrics[0])
    if "layers" in values:
        yield from (_layers(values, metric) for metric in metrics)
    if "sizes" in values:
        yield from ([_sizes(values["sizes"], metric, values["k"])] for metric in metrics)
    yield from ([f"{key}: {values[key]['verdict']}"] for key in ("trend", "control") if key in values)
    if "asymmetry" in values:
        yield [f"asymmetry: {pair['verdict']}" for pair in values["asymmetry"]]


def _pair_line(pair: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    start = f"{pair['source']} - {pair['target']}, n = {values['n']}: {_metric_name(pair['metric'], values['k'])}"
    return f"{start} {num(pair['score'])}" + (f" ({_chance(pair)})" if "p" in pair else "")


def _chance(pair: Mapping[str, Any]) -> str:
    return f"null {num(pair['null'])}, p = {num(pair['p'])}, calibrated {num(pair['calibrated'])}"


def _matrix(values: Mapping[str, Any], metric: str) -> list[str | Grid]:
    result = values["metrics"][metric]
    names = [space["name"] for space in values["spaces"]]
    head = _metric_name(metric, values["k"])
    rows = [(head if result["symmetric"] else f"{head} (row → column)", *names)]
    for i, name in enumerate(names):
        cells = (
            "1" if i == j else num(score) + (_star(result["q"][i][j]) if "q" in result else "")
            for j, score in enumerate(result["score"][i])
        )
        rows.append((name, *cells))
    return [Grid(rows), *_legend(result, values["permutations"])]


def _legend(result: Mapping[str, Any], draws: int) -> list[str]:
    if "null" not in result:
        return []
    null = [value for row in result["null"] for value in row if value is not None]
    low, high = num(min(null)), num(max(null))
    tests = len(null) // (1 + result["symmetric"])
    chance = low if low == high else f"{low} to {high}"
    return [f"chance level (null): {chance}; * marks q ≤ {LEVEL}", *_too_few(tests, draws)]


def _too_few(tests: int, draws: int) -> list[str]:
    """Warn when there are too few permutations for any single pair to reach q ≤ 0.05.

    The smallest p is 1 / (draws + 1), and the q of a single pair with that p is p times the number of tests.
    """
    needed = math.ceil(tests / LEVEL) - 1
    if draws >= needed:
        return []
    few = f"with {draws} permutations, a single pair among {tests} cannot reach q ≤ {LEVEL}"
    return [f"({few}; at least {needed} are needed)"]


def _pairs(values: Mapping[str, Any], metric: str) -> list[str | Grid]:
    pairs = sorted((p for p in values["pairs"] if p["metric"] == metric), key=lambda p: -p["score"])
    measures = [name for name in MEASURES if name in pairs[0]]
    rows: list[tuple] = [(_metric_name(metric, values["k"]), "", *measures, "")]
    for pair in pairs[:LINES]:
        rows.append((pair["source"], pair["target"], *(num(pair[m]) for m in measures), _star_of(pair)))
    parts = [Grid(rows, text=2), *_more(pairs)]
    if "q" in pairs[0]:
        significant = sum(pair["q"] <= LEVEL for pair in pairs)
        parts.append(f"{significant} of {len(pairs)} pairs are above chance (* marks q ≤ {LEVEL})")
        parts += _too_few(len(pairs), values["permutations"])
    return parts


def _more(pairs: Sequence) -> list[str]:
    return (
        [f"and {len(pairs) - LINES} more pairs with lower scores (the JSON output has all)"]
        if len(pairs) > LINES
        else []
    )


def _nearest(values: Mapping[str, Any], metric: str) -> list[str | Grid]:
    lines: list[str | Grid] = [f"nearest spaces by {_metric_name(metric, values['k'])}"]
    for name, others in values["nearest"][metric].items():
        best = ", ".join(f"{other['name']} {num(other['score'])}" for other in others[:NEAREST])
        lines.append(f"{name}: {best or 'none'}")
    return lines


def _layers(values: Mapping[str, Any], metric: str) -> list[str | Grid]:
    pairs = sorted((line for line in values["layers"] if line["metric"] == metric), key=lambda line: -line["score"])
    measures = [name for name in MEASURES if name in pairs[0]]
    rows: list[tuple] = [(f"best pairs of layers by {_metric_name(metric, values['k'])}", "", *measures, "")]
    for pair in pairs[:LINES]:
        names = _with_layer(pair, "source"), _with_layer(pair, "target")
        rows.append((*names, *(num(pair[m]) for m in measures), _star_of(pair)))
    return [Grid(rows, text=2), *_more(pairs)]


def _with_layer(pair: Mapping[str, Any], side: str) -> str:
    layer = pair[f"{side}_layer"]
    return pair[side] if layer is None else f"{pair[side]}, layer {layer}"


def _sizes(sizes: Mapping[str, Any], metric: str, k: int) -> Grid:
    curves = [curve for curve in sizes["curves"] if curve["metric"] == metric]
    null = " (null in brackets)" if any("null" in curve for curve in curves) else ""
    rows = [(f"{_metric_name(metric, k)} by number of rows{null}", "", *sizes["sizes"])]
    for curve in curves:
        scores = [
            num(score) + (f" ({num(curve['null'][i])})" if "null" in curve else "")
            for i, score in enumerate(curve["score"])
        ]
        rows.append((curve["source"], curve["target"], *scores))
    return Grid(rows, text=2)


def _metric_name(metric: str, k: int) -> str:
    return f"{metric}@{k}" if "knn" in metric else metric


def _star(q: float | None) -> str:
    return "*" if q is not None and q <= LEVEL else " "


def _star_of(pair: Mapping[str, Any]) -> str:
    return _star(pair["q"]) if "q" in pair else ""
