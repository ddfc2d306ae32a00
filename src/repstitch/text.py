"""TODO text."""


def num(value: float) -> str:
    """Three places."""
    return f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero


def columns(rows: list[tuple]) -> str:
    """Rows as lines, the first column to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([str(row[0]).ljust(widths[0]), *(str(c).rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
