"""The states of rows in a LanceDB table, which has no triggers: each state has checksums of both vectors of its row.

A state is `WORD:OLD:NEW`, for example `translated@V:0f3a9c11:77b01e5d`. If the old vector has changed since and the new
one has not, the new one is out of date. If the new one has changed, another program wrote it, and it is native.
"""

from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repstitch.stores.checksums import DIGITS, NONE
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED

OUTDATED = b"x" * DIGITS  # stands for the old vector of a row of which readers have a newer one since the cut-over


class Need(IntEnum):
    """What a row needs so that its new vector is right."""

    NOTHING = 0
    TRANSLATION = 1  # the new vector is missing or out of date
    STATE = 2  # another program wrote the new vector
    REMOVAL = 3  # the new vector is out of date and there is no old one to translate
    STATE_OUTDATED = 4  # another program wrote the new vector after the cut-over, and the old one is out of date


def no_checksums(n: int, text: bytes = NONE) -> np.ndarray:
    """Return the checksums (n, 8) of rows that are all null, or another text in their place."""
    return np.tile(np.frombuffer(text, np.uint8), (n, 1))


def states(word: str, old: np.ndarray, new: np.ndarray) -> pa.StringArray:
    """Return the states (n,) of rows with these checksums (n, 8)."""
    head = np.frombuffer(f"{word}:".encode(), np.uint8)
    colon = np.full((len(old), 1), ord(":"), np.uint8)
    texts = np.concatenate([np.tile(head, (len(old), 1)), old, colon, new], axis=1)
    ends = np.arange(len(old) + 1, dtype=np.int32) * texts.shape[1]
    return pa.StringArray.from_buffers(len(old), pa.py_buffer(ends), pa.py_buffer(np.ascontiguousarray(texts)))


def needs(stored: pa.Array, word: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return what each row needs (n,), by its stored state and the checksums (n, 8) of its vectors as they are now."""
    result = np.zeros(len(stored), np.uint8)
    if not len(stored):
        return result
    has_old, has_new = old[:, 0] != NONE[0], new[:, 0] != NONE[0]
    if stored.null_count == len(stored):
        result[has_old & ~has_new] = Need.TRANSLATION
        result[has_new] = Need.STATE
        return result
    settled = pc.call_function("equal", [stored, states(word, old, new)]).fill_null(False)
    for row in np.flatnonzero(~np.asarray(settled)):
        now = (old[row].tobytes().decode(), new[row].tobytes().decode())
        result[row] = _need(stored[row].as_py(), word, now, bool(has_old[row]), bool(has_new[row]))
    return result


def _need(state: str | None, word: str, now: tuple[str, str], has_old: bool, has_new: bool) -> Need:
    missing = Need.TRANSLATION if has_old else Need.NOTHING
    if state is None:
        return Need.STATE if has_new else missing
    first, old, new = split(state)
    if new != now[1]:  # another program wrote the new vector or emptied it
        return Need.STATE if has_new else (missing or Need.REMOVAL)
    if old == OUTDATED.decode():
        return Need.NOTHING
    if old != now[0] or first not in (word, NATIVE, SKIPPED):
        return missing or Need.REMOVAL
    return Need.NOTHING


def split(state: str) -> tuple[str, str, str]:
    """Split a state into its word and the checksums of the old and the new vector."""
    word, old, new = ([*state.rsplit(":", 2), "", ""])[:3]
    return word, old, new


def first_word(state: str | None) -> str:
    """Return `translated`, `native` or `skipped`, or "" for a row without a state."""
    word = (state or "").partition(":")[0].partition("@")[0]
    return word if word in (TRANSLATED, NATIVE, SKIPPED) else ""
