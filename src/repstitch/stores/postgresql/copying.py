"""Rows of PostgreSQL's binary COPY format as arrays: fields of fixed size, then at most one text.

A vector of pgvector has a fixed size if its number of dimensions is fixed, and so have a place (`ctid`), a transaction
(`xmin`) and a flag (`"char"`). No field of fixed size may be null. libpq returns one row at a time, so the rest of each
row is its text (PostgreSQL's documentation of COPY, "Binary Format", and of `PQgetCopyData`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
PLACE, TRANSACTION, FLAG, INTEGER = "V6", "V4", "S1", ">i8"


@dataclass(frozen=True)
class Vectors:
    """A field of vectors: `vector(dim)`, or `halfvec(dim)` if `half`."""

    dim: int
    half: bool = False

    @property
    def numbers(self) -> str:
        """The type of the numbers as they are sent."""
        return ">f2" if self.half else ">f4"


def record(fields: Mapping[str, str | Vectors]) -> np.dtype:
    """Return the layout of a row with these fields. Each has its size before it, in bytes."""
    parts: list[tuple] = [("n_fields", ">i2")]
    for name, kind in fields.items():
        parts.append((f"{name}_size", ">i4"))
        if isinstance(kind, Vectors):
            parts += [(f"{name}_dim", ">i2"), (f"{name}_unused", ">i2"), (name, kind.numbers, (kind.dim,))]
        else:
            parts.append((name, kind))
    return np.dtype(parts)


def rows_of(messages: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the rows of a COPY without its head and its end."""
    is_first = True
    for message in messages:
        row = bytes(message)
        if is_first:
            row, is_first = row.removeprefix(SIGNATURE), False
        if row and row != END:
            yield row


def decode(rows: list[bytes], layout: np.dtype) -> tuple[np.ndarray, list[str]]:
    """Return the fields of fixed size as records (n,), and the texts that follow them, if there are any.

    Raises ValueError if a vector has another number of dimensions than the layout.
    """
    size = layout.itemsize
    fixed = b"".join([row[:size] for row in rows])
    if len(fixed) != size * len(rows):
        raise ValueError(OTHER_DIM)
    records = np.frombuffer(fixed, layout)
    sizes = [name for name in layout.names or () if name.endswith("_size")]
    if any((records[name] != _bytes_of(layout, name)).any() for name in sizes):
        raise ValueError(OTHER_DIM)
    return records, [row[size + 4 :].decode() for row in rows if len(row) > size]


def encode(rows: np.ndarray, vectors: np.ndarray, half: bool) -> tuple[bytes, int]:
    """Return a COPY of the places and transactions of `rows` (n,) with `vectors` (n, dim), and its number of vectors.

    A vector with a number that is not finite becomes null.
    """
    layout = record({"place": PLACE, "transaction": TRANSACTION, "vector": Vectors(vectors.shape[1], half)})
    with np.errstate(over="ignore"):
        numbers = vectors.astype(">f2" if half else ">f4")
    has_vector = np.isfinite(numbers).all(axis=1)
    n_vectors = int(has_vector.sum())
    written = np.zeros(n_vectors, layout)
    written["vector"] = numbers[has_vector]
    written["vector_size"] = _bytes_of(layout, "vector_size")
    written["vector_dim"] = vectors.shape[1]
    without = np.zeros(len(rows) - n_vectors, [*((name, layout[name]) for name in HEAD), ("vector_size", ">i4")])
    without["vector_size"] = -1
    for part, which in ((written, has_vector), (without, ~has_vector)):
        part["n_fields"] = 3
        for name in HEAD[1:]:
            part[name] = rows[name][which]
    return SIGNATURE + written.tobytes() + without.tobytes() + END, n_vectors


def _bytes_of(layout: np.dtype, size_name: str) -> int:
    """Return the size of the field whose size is in the field `size_name`."""
    name = size_name.removesuffix("_size")
    return layout[name].itemsize + (4 if f"{name}_dim" in (layout.names or ()) else 0)


HEAD = ("n_fields", "place_size", "place", "transaction_size", "transaction")
OTHER_DIM = "vectors of several dimensions"
