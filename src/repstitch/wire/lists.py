"""Long lists of rows in JSON, read part by part.

In one piece their numbers would take the memory of their text twice over again, and the interpreter for all that time.
"""

import re
import secrets
from typing import Any

import numpy as np

from repstitch.wire.rows import Buffer

PART_BYTES = 2**18  # of text: what becomes of it stays in the processor's cache
TAIL_BYTES = 2**12  # that may stand behind the list
BLOCK = 2**16
# With the spaces of JSON, which are fewer than those of `\s`: no parser sees what stands between two parts.
FIRST = re.compile(rb"\[[ \t\n\r]*\[")
BETWEEN = re.compile(rb"\][ \t\n\r]*,")
LAST = re.compile(rb"\][ \t\n\r]*\]")
NUMBERS = ({float}, {float, int})


def read_rows(body: Buffer, field: str) -> dict[str, Any] | None:
    """The fields of a JSON object whose `field` is a list of rows, with that as float32 (n, d).

    None where the text is anything else, or where rows differ in length or hold no float. A list is what its parts are,
    joined by commas, so what is read here is what the whole text says; what is wrong with it is for others to say.
    """
    import orjson

    first, *lasts = FIRST.search(body), *LAST.finditer(body, max(0, len(body) - TAIL_BYTES))
    if first is None or not lasts:
        return None
    start, end, text = first.start(), lasts[-1].end(), memoryview(body)
    if count(text[start:end], b'"'):
        return None  # not one list
    mark = secrets.token_hex()  # nobody can send it, and inside a text its quotes would spoil the JSON
    try:
        fields = orjson.loads(b'%b"%b"%b' % (text[:start], mark.encode(), text[end:]))
        if not isinstance(fields, dict) or fields.get(field) != mark:
            return None
        parts, at, end = [], start + 1, end - 1
        while at < end:
            found = BETWEEN.search(body, at + PART_BYTES, end)
            stop = end if found is None else found.start() + 1
            rows = _read_part(orjson.loads(b"[%b]" % text[at:stop]))
            if rows is None or (parts and rows.shape[1] != parts[0].shape[1]):
                return None
            parts.append(rows)
            at = end if found is None else found.end()
    except orjson.JSONDecodeError:
        return None
    fields[field] = np.concatenate(parts)
    return fields


def count(text: Buffer, letter: bytes) -> int:
    """How often an ASCII letter stands in a text."""
    if len(text) <= BLOCK and not isinstance(text, memoryview):
        return text.count(letter)
    codes, code = np.frombuffer(text, np.uint8), ord(letter)
    return sum(int(np.count_nonzero(codes[at : at + BLOCK] == code)) for at in range(0, len(codes), BLOCK))


def _read_part(rows: list) -> np.ndarray | None:
    if not rows or any(type(row) is not list or set(map(type, row)) not in NUMBERS for row in rows):
        return None
    if len(set(map(len, rows))) > 1:
        return None
    with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is refused as such
        return np.array(rows, dtype=np.float32)
