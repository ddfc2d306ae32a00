"""Numbers and tables as text, and the names that a misspelt one may stand for."""

import difflib
from collections.abc import Iterable, Sequence


def num(value: float) -> str:
    """A number with three decimals, and without a minus sign where it rounds to zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def columns(rows: Sequence[tuple], text: int = 1) -> str:
    """Rows as aligned lines: the first `text` columns to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    place = [str.ljust] * text + [str.rjust] * (len(widths) - text)
    return "\n".join(
        "  ".join(put(str(cell), width) for put, cell, width in zip(place, row, widths, strict=True)).rstrip()
        for row in rows
    )


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The up to three `names` most like a misspelt one, best first; empty where none is alike."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.3)
