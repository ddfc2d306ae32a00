"""Hashes of rows and of ids, equal in every run and on every machine."""

import hashlib
from collections.abc import Iterator

import numpy as np


def digests(*arrays: np.ndarray) -> Iterator[bytes]:
    """A 16-byte digest per row over all arrays (n, …), equal exactly where the bytes of the rows are equal."""
    for rows in zip(*arrays, strict=True):
        yield hashlib.blake2b(b"".join(row.tobytes() for row in rows), digest_size=16).digest()


def repeated_rows(*arrays: np.ndarray) -> np.ndarray:
    """A mask (n,) of the rows that are equal, in all arrays (n, …) and byte for byte, to an earlier row."""
    earlier: set[bytes] = set()
    repeats = np.zeros(len(arrays[0]), dtype=bool)
    for i, digest in enumerate(digests(*arrays)):
        repeats[i] = digest in earlier
        earlier.add(digest)
    return repeats


def hash_key(seed: int, key: object) -> tuple[int, int]:
    """Two uint64 hashes of a key's text under a seed."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def row_fingerprints(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """One int64 (n,) per pair, from its vectors: recognises a pair whose id changed or is missing."""
    hashes = [int.from_bytes(digest[:8], "little") for digest in digests(X, Y)]
    return np.array(hashes, dtype=np.uint64).view(np.int64)


def id_fingerprints(ids: np.ndarray) -> np.ndarray:
    """One int64 (n,) per id (n,). A stitcher keeps them to recognise the pairs that it was trained on."""
    return np.array([hash_key(-1, key)[0] for key in ids], dtype=np.uint64).view(np.int64)
