"""Numbers and tables as text, and the names nearest to a misspelt one."""

import difflib
from collections.abc import Iterable, Sequence


def num(value: float) -> str:
    """A number with three decimals; never "-0.000"."""
    return f"{round(value, 3) + 0.0:.3f}"


def columns(rows: Sequence[tuple[object, ...]], text: int = 1) -> str:
    """Rows as aligned lines: the first `text` columns are aligned to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    place = [str.ljust] * text + [str.rjust] * (len(widths) - text)
    return "\n".join(
        "  ".join(put(str(cell), width) for put, cell, width in zip(place, row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown_table(rows: Sequence[tuple[object, ...]], text: int = 1) -> str:
    """Rows as a table in Markdown, the first row its head, with columns aligned as in `columns`."""
    head, *others = (f"| {' | '.join(str(cell).strip().replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    rule = " | ".join("---" if place < text else "---:" for place in range(len(rows[0])))
    return "\n".join([head, f"| {rule} |", *others])


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that are most similar to `name`, best first; empty where none is similar."""
    return difflib.get_close_matches(name, list(names), n=3, cutoff=0.3)
