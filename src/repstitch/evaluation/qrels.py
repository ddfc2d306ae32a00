# pyright: strict
"""Relevance judgements in the text formats of BEIR and TREC."""

import math
import os
from pathlib import Path

from repstitch.errors import InputError, one_line


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Relevance judgements: for each query's id the grade of each document's id.

    A line holds one judgement: query, document, grade (as in BEIR), or query, anything, document, grade (as in TREC).
    Tabs separate the columns, spaces where a line has no tab. A first line whose last column is no number is a header.
    Raises InputError on lines of another form, naming the first, and on a pair that is judged twice with different
    grades.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`qrels` {path} cannot be read: {one_line(error)}") from None
    qrels: dict[str, dict[str, float]] = {}
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else line.split())]
        grade = _grade(columns[-1])
        is_header, first = first and grade is None, False
        if is_header:
            continue
        if len(columns) not in (3, 4) or grade is None:
            raise InputError(
                "`qrels` must hold lines of query, document and grade (a number), or TREC's four columns; "
                f"line {number} of {path} is {line[:80]!r}."
            )
        grades = qrels.setdefault(columns[0], {})
        if grades.setdefault(columns[-2], grade) != grade:
            raise InputError(
                f"`qrels` {path} judges query {columns[0]!r} and document {columns[-2]!r} twice, with different grades "
                f"(line {number}); keep one."
            )
    if not qrels:
        raise InputError(f"`qrels` {path} holds no judgements; give lines of query, document and grade.")
    return qrels


def _grade(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None  # TREC marks spam below 0
