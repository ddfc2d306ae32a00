"""Checksums of vectors, which tell whether a row has changed since its state was written."""

import binascii

import numpy as np

DIGITS = 8
NONE = b"-" * DIGITS  # the checksum of a null
MULTIPLIERS = np.random.default_rng(20261130).integers(0, 2**63, 2**17, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def checksums(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return a checksum of each row (n, d) of float32 as text (n, 8) of bytes; `valid` (n,) is False for nulls.

    It is the multilinear hash of the row's words of 32 bits: two different rows have the same with probability 2^-32.
    It takes less than half the time of a CRC of each row.
    """
    words = np.ascontiguousarray(rows).view(np.uint32)
    sums = np.einsum("ij,j->i", words, MULTIPLIERS[: rows.shape[1]]) >> np.uint64(32)
    digits = binascii.hexlify(sums.astype(">u4").tobytes())
    texts = np.frombuffer(digits, np.uint8).reshape(-1, DIGITS).copy()
    texts[~valid] = np.frombuffer(NONE, np.uint8)
    return texts
