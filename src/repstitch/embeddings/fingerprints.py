"""Hashes of rows, of ids and of the cells of rows. They are the same in every run and on every machine."""

import hashlib
from collections.abc import Iterator

import numpy as np

from repstitch.embeddings.cells import CellIndex, axes, cell_hashes, cells, directions

# Of unit rows: the width of a cell, the period of check values, and their root mean square error after rounding.
WIDTH, PERIOD, MOST_ERROR = 1 / 6, 1 / 16, 0.0033
AXES, CHECKS, STEPS = 16, 12, 16  # of each row: directions of its cell, check values, and steps of a check value
EDGES = 5  # of a cell that a rounded pair may have crossed
LEAST_COSINE = 2 * CHECKS * (1 - 2 * (np.pi * MOST_ERROR / PERIOD) ** 2)  # sum over the check values, as angles
KEY_BYTES = 16
BATCH_ROWS = 4096


def digests(*arrays: np.ndarray) -> Iterator[bytes]:
    """Yield one 16-byte digest per row, computed over all arrays (n, …). Rows with equal bytes have equal digests."""
    for rows in zip(*arrays, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


def repeated_rows(*arrays: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the rows that equal an earlier row byte for byte, in all arrays (n, …)."""
    earlier: set[bytes] = set()
    repeats = np.zeros(len(arrays[0]), dtype=bool)
    for i, digest in enumerate(digests(*arrays)):
        repeats[i] = digest in earlier
        earlier.add(digest)
    return repeats


def hash_key(seed: int, key: object) -> tuple[int, int]:
    """Return two uint64 hashes of the text of a key, which depend on the seed."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def row_fingerprints(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return one int64 (n,) per pair, a hash of its vectors. It identifies pairs whose ids changed or are missing."""
    hashes = [int.from_bytes(digest[:8], "little") for digest in digests(X, Y)]
    return np.array(hashes, dtype=np.uint64).view(np.int64)


def id_fingerprints(ids: np.ndarray) -> np.ndarray:
    """Return one int64 (n,) per id. A stitcher stores them to recognise the pairs that it was trained on."""
    return np.array([hash_key(-1, key)[0] for key in ids], dtype=np.uint64).view(np.int64)


def pair_keys(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return the keys (m, 16), uint8, by which `have_keys` recognises pairs X (n, d_source), Y (n, d_target).

    A key has four bytes of a hash of the cell that the pair is in (see `cells`), and a check value of half a byte for
    each row on twelve other directions: its position in a period, without the number of the period. These are encrypted
    with a one-way hash of the cell, so whoever does not have the pair cannot read them, and no vector can be rebuilt.
    Equal keys are listed once, and keys are in no order of the pairs.
    """
    keys = [np.zeros((0, KEY_BYTES), dtype=np.uint8)]
    for at in range(0, len(X), BATCH_ROWS):
        rows = X[at : at + BATCH_ROWS], Y[at : at + BATCH_ROWS]
        cell = cells(_positions(*rows))
        steps = np.floor(_checks(*rows) * STEPS).astype(np.uint8)
        hashes = cell_hashes(cell).astype("<u4").view(np.uint8).reshape(-1, 4)
        keys.append(np.column_stack([hashes, (steps[:, ::2] * STEPS + steps[:, 1::2]) ^ _masks(cell)]))
    return np.unique(np.concatenate(keys), axis=0)


def have_keys(keys: np.ndarray, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the pairs that have one of the `keys`, see `pair_keys`.

    Each row may have been multiplied by a positive number or rounded to float16 or bfloat16 since. Rows that differ by
    more, one or two percent, are other rows. If rows vary in one to three directions, neighbours may differ by less
    than a rounded row does. They are recognised as well, because their keys cannot tell them from rounded rows.
    """
    index = CellIndex.of(np.ascontiguousarray(keys[:, :4]).view("<u4").ravel())
    recognised = np.zeros(len(X), dtype=bool)
    for at in range(0, len(X), BATCH_ROWS):
        rows = X[at : at + BATCH_ROWS], Y[at : at + BATCH_ROWS]
        checks = _checks(*rows)
        for cell, query, match, blocks in index.candidates(_positions(*rows), EDGES):
            apart = _decrypted(keys[match], cell[query]) - checks[query]
            recognised[at + query[np.cos(2 * np.pi * apart).sum(axis=1) >= LEAST_COSINE]] = True
            for some, matches in blocks:
                some = some[~recognised[at + some]]
                while len(some):  # once, unless cells have equal hashes
                    equal = (cell[some] == cell[some[0]]).all(axis=1)
                    matched = _have_a_key(keys[matches], cell[some[:1]], checks[some[equal]])
                    recognised[at + some[equal][matched]] = True
                    some = some[~equal]
    return recognised


def _have_a_key(keys: np.ndarray, cell: np.ndarray, checks: np.ndarray) -> np.ndarray:
    """Return a mask of the rows with these `checks`, all of one `cell` (1, k), that have one of the keys."""
    recognised = np.zeros(len(checks), dtype=bool)
    turns = _turns(checks)
    for at in range(0, len(keys), BATCH_ROWS):
        left = np.flatnonzero(~recognised)
        cosines = turns[left] @ _turns(_decrypted(keys[at : at + BATCH_ROWS], cell)).T
        recognised[left] = cosines.max(axis=1) >= LEAST_COSINE
    return recognised


def _turns(checks: np.ndarray) -> np.ndarray:
    """Return points on circles (n, 4 · CHECKS) whose products are the sums of the cosines between check values."""
    angles = (2 * np.pi * checks).astype(np.float32)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def _decrypted(keys: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the check values (n, 2 · CHECKS) in keys (n, 16) of pairs in these cells, (n, k) or one for all (1, k)."""
    octets = keys[:, 4:] ^ _masks(cell)
    return (np.stack([octets // STEPS, octets % STEPS], axis=2).reshape(len(octets), 2 * CHECKS) + 0.5) / STEPS


def _positions(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return the pairs on the directions of their cells, (n, 2 · AXES), in widths of a cell."""
    sides = [directions(rows) @ axes(rows.shape[1], AXES, name) for rows, name in ((X, "source"), (Y, "target"))]
    return np.concatenate(sides, axis=1) / np.float32(WIDTH)


def _checks(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Return the pairs on the directions of their check values, (n, 2 · CHECKS): positions in a period, from 0 to 1."""
    names = ((X, "source checks"), (Y, "target checks"))
    sides = [directions(rows) @ axes(rows.shape[1], CHECKS, name) for rows, name in names]
    positions = np.concatenate(sides, axis=1).astype(np.float64) / PERIOD
    return positions - np.floor(positions)


def _masks(cell: np.ndarray) -> np.ndarray:
    """Return the bytes (n, CHECKS) that encrypt the check values of pairs in each cell (n, k)."""
    rows = np.ascontiguousarray(cell, dtype="<i4").view(f"V{4 * cell.shape[1]}").ravel().tolist()
    masks = b"".join(hashlib.blake2b(row, digest_size=CHECKS).digest() for row in rows)
    return np.frombuffer(masks, dtype=np.uint8).reshape(-1, CHECKS)
