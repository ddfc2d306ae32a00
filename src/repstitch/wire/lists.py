# pyright: strict
"""Long lists of rows in JSON, parsed in parts.

Parsed at once, their numbers would take twice the memory of their text more, and block the interpreter all that time.
"""

import re
import secrets
from typing import Any, cast

import numpy as np

from repstitch.wire.rows import Buffer

PART_BYTES = 2**18  # of text, so that a parsed part fits in the processor's cache
TAIL_BYTES = 2**12  # of text that may follow the list
BLOCK = 2**16
# Whitespace as JSON defines it, which `\s` exceeds: the text between two parts is never parsed.
FIRST = re.compile(rb"\[[ \t\n\r]*\[")
BETWEEN = re.compile(rb"\][ \t\n\r]*,")
LAST = re.compile(rb"\][ \t\n\r]*\]")
NUMBERS = ({float}, {float, int})


def read_rows(body: Buffer, field: str) -> dict[str, Any] | None:
    """The fields of a JSON object whose `field` is a list of rows, with that list as float32 (n, d).

    None where the text is anything else, or where rows differ in length or hold no float: such text must be parsed as a
    whole, which also tells what is wrong with it. Otherwise the result is that of parsing the whole.
    """
    import orjson

    first, *lasts = FIRST.search(body), *LAST.finditer(body, max(0, len(body) - TAIL_BYTES))
    if first is None or not lasts:
        return None
    start, end, text = first.start(), lasts[-1].end(), memoryview(body)
    if count(text[start:end], b'"'):
        return None  # the brackets belong to several values
    mark = secrets.token_hex()  # no sender can guess it; inside a string its quotes would make the JSON invalid
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
    """How often an ASCII letter occurs in a text."""
    if len(text) <= BLOCK and not isinstance(text, memoryview):
        return text.count(letter)
    codes, code = np.frombuffer(text, np.uint8), ord(letter)
    return sum(int(np.count_nonzero(codes[i : i + BLOCK] == code)) for i in range(0, len(codes), BLOCK))


def _read_part(rows: list[Any]) -> np.ndarray | None:
    if not rows or any(type(row) is not list or set(map(type, row)) not in NUMBERS for row in rows):
        return None
    if len(set(map(len, rows))) > 1:
        return None
    with np.errstate(over="ignore"):  # numbers too large for float32 become Inf, which is refused later
        return np.array(rows, dtype=np.float32)
