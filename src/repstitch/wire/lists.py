# pyright: strict
"""Parse long lists of rows in JSON in chunks.

Parsing a list at once would take additional memory of twice the size of its text, and block the interpreter meanwhile.
"""

import re
import secrets
from typing import Any, cast

import numpy as np

from repstitch.wire.rows import Buffer

PART_BYTES = 2**18  # of text per chunk; a parsed chunk then fits in the processor's cache
TAIL_BYTES = 2**12  # the longest text after the list
BLOCK = 2**16
# Whitespace is matched as JSON defines it. `\s` would accept other characters too, and the text between two chunks is
# never parsed.
FIRST = re.compile(rb"\[[ \t\n\r]*\[")
BETWEEN = re.compile(rb"\][ \t\n\r]*,")
LAST = re.compile(rb"\][ \t\n\r]*\]")
NUMBERS = ({float}, {float, int})


def read_rows(body: Buffer, field: str) -> dict[str, Any] | None:
    """Parse a JSON object whose `field` is a list of rows. Return its fields, with that list as float32 (n, d).

    Return None if the text is anything else, if the rows differ in length, or if a row has no float. Such a text must
    be parsed as a whole, which also reports its error. The numbers are the same as if the text were parsed as a whole.
    """
    import orjson

    first, *lasts = FIRST.search(body), *LAST.finditer(body, max(0, len(body) - TAIL_BYTES))
    if first is None or not lasts:
        return None
    start, end, text = first.start(), lasts[-1].end(), memoryview(body)
    if count(text[start:end], b'"'):
        return None  # a quote between the brackets shows that they belong to several values
    # The list is replaced by a mark that no sender can guess. Inside a string, the mark's quotes would be invalid JSON.
    mark = secrets.token_hex()
    try:
        rest = orjson.loads(b'%b"%b"%b' % (text[:start], mark.encode(), text[end:]))
        if not isinstance(rest, dict):
            return None
        fields = cast("dict[str, Any]", rest)
        if fields.get(field) != mark:
            return None
        parts: list[np.ndarray] = []
        position, end = start + 1, end - 1
        while position < end:
            comma = BETWEEN.search(body, position + PART_BYTES, end)
            stop = end if comma is None else comma.start() + 1
            rows = _read_part(orjson.loads(b"[%b]" % text[position:stop]))
            if rows is None or (parts and rows.shape[1] != parts[0].shape[1]):
                return None
            parts.append(rows)
            position = end if comma is None else comma.end()
    except orjson.JSONDecodeError:
        return None
    fields[field] = np.concatenate(parts)
    return fields


def count(text: Buffer, letter: bytes) -> int:
    """Return how often an ASCII character occurs in a text."""
    if len(text) <= BLOCK and not isinstance(text, memoryview):
        return text.count(letter)
    codes, code = np.frombuffer(text, np.uint8), ord(letter)
    return sum(int(np.count_nonzero(codes[i : i + BLOCK] == code)) for i in range(0, len(codes), BLOCK))


def _read_part(rows: list[Any]) -> np.ndarray | None:
    """Return a chunk of rows as float32 (n, d); None if they differ in length or a row is not a list of floats."""
    if not rows or any(type(row) is not list or set(map(type, row)) not in NUMBERS for row in rows):
        return None
    if len(set(map(len, rows))) > 1:
        return None
    with np.errstate(over="ignore"):  # numbers too large for float32 become Inf, which is rejected later
        return np.array(rows, dtype=np.float32)
