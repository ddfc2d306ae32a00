"""Formatting of numbers, tables and logs as text, and suggestions for misspelt names."""

import difflib
import math
from collections.abc import Iterable, Sequence

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"  # of processes that run for long


def num(value: float) -> str:
    """Format a number with three decimals. Zero has no sign: "0.000", never "-0.000"."""
    return f"{round(value, 3) + 0.0:.3f}"


def ends(low: float, high: float, digits: int = 3, sign: str = "") -> tuple[str, str]:
    """Format the two ends of an interval, rounded outwards if rounding would make them equal. `sign` is "" or "+"."""
    unit = 10.0**-digits
    if round(low, digits) == round(high, digits):
        low, high = math.floor(low / unit) * unit, math.ceil(high / unit) * unit
    first, last = (f"{round(end, digits) + 0.0:{sign}.{digits}f}" for end in (low, high))
    return first, last


def columns(rows: Sequence[tuple[object, ...]], text: int = 1) -> str:
    """Format rows as lines of text. The first `text` columns are left-aligned, the others right-aligned."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    place = [str.ljust] * text + [str.rjust] * (len(widths) - text)
    return "\n".join(
        "  ".join(put(str(cell), width) for put, cell, width in zip(place, row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[tuple[object, ...]], text: int = 1) -> str:
    """Format rows as a Markdown table. The first row is the header. Columns are aligned as in `columns`."""
    head, *others = (f"| {' | '.join(str(cell).strip().replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    rule = " | ".join("---" if place < text else "---:" for place in range(len(rows[0])))
    return "\n".join([head, f"| {rule} |", *others])


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names most similar to `name`: at most three, best first, and none if no name is similar."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.3)


def is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and dicts are nested in more than this number of levels, such as in a value from JSON."""
    inside: list[object] = [value]
    for _ in range(levels):
        inside = [
            inner
            for outer in inside
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(value, list | dict) for value in inside)
