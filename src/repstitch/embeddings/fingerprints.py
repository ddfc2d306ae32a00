"""Hashes of rows and of ids. They are the same in every run and on every machine."""

import hashlib
from collections.abc import Iterator

import numpy as np


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
