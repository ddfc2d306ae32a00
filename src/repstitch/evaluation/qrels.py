"""TODO evaluation.qrels."""

import math
from pathlib import Path

from repstitch.errors import InputError, one_line


def read_qrels(path) -> dict[str, dict[str, float]]:
    """Relevance judgements: for each query's id the grade of each document's id.

    One judgement a line: query, document, grade (as BEIR), or query, anything, document, grade (as TREC), between tabs,
    or between spaces in lines without a tab. A first line whose last column is no number is a header. Raises InputError
    on lines that cannot be read so, naming the first, and on a pair that is judged twice with different grades.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`qrels` {path} cannot be read: {one_line(error)}") from None
    found: dict[str, dict[str, float]] = {}
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = [c.strip() for c in (line.split("\t") if "\t" in line else line.split())]
        grade = _grade(columns[-1])
        if first and grade is None:
            first = False
            continue
        first = False
        if len(columns) not in (3, 4) or grade is None:
            raise InputError(
                "`qrels` must hold lines of query, document and grade (a number), or TREC's four columns; "
                f"line {number} of {path} is {line[:80]!r}."
            )
        judged = found.setdefault(columns[0], {})
        if judged.setdefault(columns[-2], grade) != grade:
            raise InputError(
                f"`qrels` {path} judges query {columns[0]!r} and document {columns[-2]!r} twice, with different grades "
                f"(line {number}); keep one."
            )
    if not found:
        raise InputError(f"`qrels` {path} holds no judgements; give lines of query, document and grade.")
    return found


def _grade(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None  # TREC marks spam below 0
