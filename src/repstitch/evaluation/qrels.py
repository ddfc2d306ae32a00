# pyright: strict
"""Read relevance judgements (qrels) in the text formats of BEIR and TREC."""

import math
import os
import re

from repstitch.errors import InputError
from repstitch.lines import read_lines


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read relevance judgements from a file. Return, for each query id, the grade of each judged document id.

    Each line is one judgement: query, document, grade (BEIR), or query, iteration, document, grade (TREC). Columns are
    separated by tabs, or by spaces if a line has no tab. A first line whose last column is not a number is treated as a
    header. A negative grade counts as 0. Raises InputError on the first malformed line, and on a pair that is judged
    twice with different grades.
    """
    lines = read_lines(path, "qrels")
    qrels: dict[str, dict[str, float]] = {}
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        line = line.rstrip("\t ")
        columns = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        columns = [column.strip(" ") for column in columns]
        grade = _grade(columns[-1])
        is_header, first = first and len(columns) in (3, 4) and not _is_number(columns[-1]), False
        if is_header:
            continue
        if len(columns) not in (3, 4) or grade is None:
            raise InputError(
                "`qrels` must have lines of query, document and grade (a number), or TREC's four columns; "
                f"line {number} of {path} is {line[:80]!r}."
            )
        grades = qrels.setdefault(columns[0], {})
        if grades.setdefault(columns[-2], grade) != grade:
            raise InputError(
                f"`qrels` {path} judges query {columns[0]!r} and document {columns[-2]!r} twice, with different grades "
                f"(line {number}); keep one of them."
            )
    if not qrels:
        raise InputError(f"`qrels` {path} contains no judgements; it must have lines of query, document and grade.")
    return qrels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _grade(text: str) -> float | None:
    value = float(text) if _is_number(text) else math.nan
    return max(0.0, value) if math.isfinite(value) else None  # TREC marks spam with grades below 0
