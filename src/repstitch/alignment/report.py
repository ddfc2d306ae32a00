"""An atlas as text for people and as files for programs."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from repstitch.errors import InputError, one_line
from repstitch.files import check_new_folder, written_whole
from repstitch.text import columns, num

LEVEL = 0.05
NAMES_IN_MATRIX = 8
WIDEST = 80  # characters of all names in the head of a matrix
LINES = 20
NEAREST = 3
COLUMNS = ("source", "target", "metric", "score", "null", "p", "q", "calibrated", "se")


def write(found: Mapping, out: str | os.PathLike) -> Path:
    """Write an atlas to a new folder, as `put` fills it; the folder appears whole or not at all."""
    target = check_new_folder(out, "an atlas")
    with written_whole(target) as folder:
        folder.mkdir(parents=True)
        put(found, folder)
        check_new_folder(out, "an atlas")  # it may have appeared meanwhile
    return target


def put(found: Mapping, folder: Path) -> None:
    """Write `atlas.json`, `pairs.csv` and `pairs.parquet` (one row per pair and metric) to a folder that exists.

    Each file replaces an older one whole.
    """
    rows = pa.table({name: [pair[name] for pair in found["pairs"]] for name in COLUMNS if name in found["pairs"][0]})
    text = json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(folder / "atlas.json") as path:
        path.write_text(text, encoding="utf-8")
    with written_whole(folder / "pairs.csv") as path:
        pacsv.write_csv(rows, path)
    with written_whole(folder / "pairs.parquet") as path:
        pq.write_table(rows, path)


def read(folder: str | os.PathLike) -> dict:
    """The atlas that `write` left in a folder; InputError where there is none."""
    path = Path(folder) / "atlas.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} must be the folder of an atlas; {path} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict) or not {"spaces", "metrics", "pairs"} <= set(found):
        raise InputError(f"{folder} must be the folder of an atlas; its atlas.json holds something else.")
    return found


def table(found: Mapping) -> str:
    """An atlas as text: two spaces in a line a metric; more as a matrix or the best pairs, and what else was asked."""
    names = [space["name"] for space in found["spaces"]]
    if len(names) == 2:
        parts = ["\n".join(_pair_line(pair, found) for pair in found["pairs"])]
    else:
        drawn = f", {found['permutations']} permutations" if found["permutations"] else ""
        parts = [f"{len(names)} spaces, n = {found['n']}{drawn}"]
        show = _matrix if len(names) <= NAMES_IN_MATRIX and sum(map(len, names)) <= WIDEST else _pairs
        parts += [show(found, metric) for metric in found["metrics"]]
        if len(names) <= LINES:
            parts.append(_nearest(found, next(iter(found["metrics"]))))
    if "layers" in found:
        parts += [_layers(found, metric) for metric in found["metrics"]]
    if "sizes" in found:
        parts += [_sizes(found["sizes"], metric, found["k"]) for metric in found["metrics"]]
    parts += [f"{key}: {found[key]['verdict']}" for key in ("trend", "control") if key in found]
    if "asymmetry" in found:
        parts.append("\n".join(f"asymmetry: {pair['verdict']}" for pair in found["asymmetry"]))
    return "\n\n".join(parts)


def _pair_line(pair: Mapping, found: Mapping) -> str:
    start = f"{pair['source']} - {pair['target']}, n = {found['n']}: {_called(pair['metric'], found['k'])}"
    return f"{start} {num(pair['score'])}" + (f" ({_chance(pair)})" if "p" in pair else "")


def _chance(numbers: Mapping) -> str:
    return f"null {num(numbers['null'])}, p = {numbers['p']:.3f}, calibrated {num(numbers['calibrated'])}"


def _matrix(found: Mapping, metric: str) -> str:
    result = found["metrics"][metric]
    names = [space["name"] for space in found["spaces"]]
    called = _called(metric, found["k"])
    rows = [(called if result["symmetric"] else f"{called}, from row to column", *names)]
    for i, name in enumerate(names):
        cells = (
            "1" if i == j else num(score) + (_star(result["q"][i][j]) if "q" in result else "")
            for j, score in enumerate(result["score"][i])
        )
        rows.append((name, *cells))
    return "\n".join([columns(rows), *_legend(result, found["permutations"])])


def _legend(result: Mapping, draws: int) -> list[str]:
    if "null" not in result:
        return []
    null = [v for row in result["null"] for v in row if v is not None]
    low, high = num(min(null)), num(max(null))
    tests = len(null) // (1 + result["symmetric"])
    return [f"by chance {low if low == high else f'{low} to {high}'}; * where q ≤ {LEVEL}", *_too_few(tests, draws)]


def _too_few(tests: int, draws: int) -> list[str]:
    """A word where not even a perfect pair could pass by itself: p is at least 1 / (draws + 1), q that times tests."""
    needed = math.ceil(tests / LEVEL) - 1
    if draws >= needed:
        return []
    return [f"(with {draws} permutations a single pair among {tests} cannot have q ≤ {LEVEL}; {needed} would do)"]


def _pairs(found: Mapping, metric: str) -> str:
    pairs = sorted((p for p in found["pairs"] if p["metric"] == metric), key=lambda p: -p["score"])
    measures = [name for name in COLUMNS[3:] if name in pairs[0]]
    rows: list[tuple] = [(_called(metric, found["k"]), "", *measures, "")]
    for pair in pairs[:LINES]:
        star = _star(pair["q"]) if "q" in pair else ""
        rows.append((pair["source"], pair["target"], *(num(pair[m]) for m in measures), star))
    lines = [columns(rows, text=2), *_more(pairs)]
    if "q" in pairs[0]:
        significant = sum(pair["q"] <= LEVEL for pair in pairs)
        lines.append(f"{significant} of {len(pairs)} pairs beyond chance (* where q ≤ {LEVEL})")
        lines += _too_few(len(pairs), found["permutations"])
    return "\n".join(lines)


def _more(pairs: list) -> list[str]:
    return [f"and {len(pairs) - LINES} pairs that score less (all with --json or --out)"] if len(pairs) > LINES else []


def _nearest(found: Mapping, metric: str) -> str:
    lines = [f"nearest by {_called(metric, found['k'])}"]
    for name, others in found["nearest"][metric].items():
        best = ", ".join(f"{other['name']} {num(other['score'])}" for other in others[:NEAREST])
        lines.append(f"{name}: {best or 'none'}")
    return "\n".join(lines)


def _layers(found: Mapping, metric: str) -> str:
    lines = sorted((line for line in found["layers"] if line["metric"] == metric), key=lambda line: -line["score"])
    measures = [name for name in COLUMNS if name in lines[0]][3:]
    rows: list[tuple] = [(f"best layers, {_called(metric, found['k'])}", "", *measures, "")]
    for line in lines[:LINES]:
        star = _star(line["q"]) if "q" in line else ""
        rows.append((_at_layer(line, "source"), _at_layer(line, "target"), *(num(line[m]) for m in measures), star))
    return "\n".join([columns(rows, text=2), *_more(lines)])


def _at_layer(line: Mapping, side: str) -> str:
    layer = line[f"{side}_layer"]
    return line[side] if layer is None else f"{line[side]}, layer {layer}"


def _sizes(sizes: Mapping, metric: str, k: int) -> str:
    rows = [(f"{_called(metric, k)} by number of rows", "", *sizes["sizes"])]
    for curve in (c for c in sizes["curves"] if c["metric"] == metric):
        scores = [
            num(score) + (f" ({num(curve['null'][i])})" if "null" in curve else "")
            for i, score in enumerate(curve["score"])
        ]
        rows.append((curve["source"], curve["target"], *scores))
    return columns(rows, text=2)


def _called(metric: str, k: int) -> str:
    return f"{metric}@{k}" if "knn" in metric else metric


def _star(q: float | None) -> str:
    return "*" if q is not None and q <= LEVEL else " "
