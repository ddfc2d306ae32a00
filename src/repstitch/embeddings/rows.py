"""Rows of vectors with their ids and their space: in memory (`Embeddings`), and opened but not yet read (`Scan`)."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from repstitch.arguments import check_unmasked
from repstitch.errors import InputError, one_line
from repstitch.spaces import Space

SPACE_KEY = b"repstitch.space"
BATCH_ROWS = 16_384
COLUMNS = ("ids", "groups", "labels")
RowIndex = slice | Sequence[int] | np.ndarray  # a range of rows, their positions, or a mask


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Rows from one encoder: `vectors` (n, dim) float16 or float32 and their `space`.

    `ids`, `groups` and `labels` (n,) are optional. `declared` is True where a card or the caller states the space, and
    False where it was guessed from the file's name. Two objects are equal only if they are the same object.
    """

    vectors: np.ndarray
    space: Space
    ids: np.ndarray | None = None
    groups: np.ndarray | None = None
    declared: bool = True
    labels: np.ndarray | None = None

    def __post_init__(self):
        check_unmasked(self.vectors, f"`vectors` of space {self.space.name!r}")
        if self.vectors.ndim != 2 or self.vectors.shape[1] != self.space.dim:
            raise InputError(
                f"`vectors` of space {self.space.name!r} must be (n, {self.space.dim}); got {self.vectors.shape}."
            )
        if self.vectors.dtype.kind != "f":
            raise InputError(f"`vectors` of space {self.space.name!r} must be floats; got {self.vectors.dtype}.")
        for name in COLUMNS:
            if getattr(self, name) is not None:
                column = np.asarray(getattr(self, name))
                if column.shape != (len(self.vectors),):
                    raise InputError(f"`{name}` must have one entry a row ({len(self.vectors)}); got {column.shape}.")
                text = column if column.dtype.kind in "OU" else column.astype(str).astype(object)
                object.__setattr__(self, name, text)

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        parts = [f"{len(self):,} rows of {self.space.name!r}", f"{self.space.dim:,} dimensions"]
        parts += [str(self.vectors.dtype), *(name for name in COLUMNS if getattr(self, name) is not None)]
        return f"Embeddings({', '.join(parts)})"

    def take(self, rows: RowIndex) -> "Embeddings":
        """The rows at these positions, in that order (or where a mask is true)."""
        columns = {name: take_entries(getattr(self, name), rows) for name in COLUMNS}
        return replace(self, vectors=self.vectors[rows], **columns)


EmbeddingsLike = str | os.PathLike[str] | Embeddings | ArrayLike  # everything that `reading.read` reads


@dataclass(frozen=True)
class Scan:
    """A file of embeddings that is opened but not read: its size and space, and its rows in batches."""

    path: str
    n_rows: int
    space: Space
    declared: bool
    has_ids: bool
    _rows: Callable[[int, int], Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]] = field(repr=False)

    def batches(self, rows: int = BATCH_ROWS, start: int = 0) -> Iterator[Embeddings]:
        """The rows from `start` on, in file order, at most `rows` at a time."""
        stream = self._rows(rows, start)
        while True:
            try:
                vectors, ids, groups = next(stream)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self.path} cannot be read to its end: {one_line(error)}") from None
            yield Embeddings(vectors, self.space, ids, groups, self.declared)

    def read(self) -> Embeddings:
        """All rows at once."""
        parts = list(self.batches())
        if not parts:
            raise InputError(f"{self.path} holds no rows.")

        def join(name: str) -> np.ndarray | None:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else np.concatenate(columns)

        vectors = parts[0].vectors if len(parts) == 1 else np.concatenate([p.vectors for p in parts])
        return Embeddings(vectors, self.space, join("ids"), join("groups"), self.declared)


def take_entries(column: np.ndarray | None, rows: RowIndex) -> np.ndarray | None:
    """The entries of a column at these rows; None where there is no column."""
    return None if column is None else column[rows]


def row_numbers(start: int, stop: int) -> np.ndarray:
    """The ids of rows that have none: their positions, as text."""
    return np.arange(start, stop).astype(str).astype(object)


def invalid_rows(X: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (n,) of the rows that cannot be used, by reason."""
    finite = np.asarray(np.isfinite(X).all(axis=1))
    return {"NaN or Inf": ~finite, "all zeros": finite & ~np.asarray(X.any(axis=1))}


def check_unique(ids: np.ndarray, name: str) -> None:
    """Raise InputError where an id occurs twice; `name` is what the message calls the rows."""
    if len(set(ids)) < len(ids):
        earlier: set = set()
        first = next(key for key in ids if key in earlier or earlier.add(key))
        raise InputError(
            f"Ids must be unique; the {name} has {len(ids) - len(set(ids))} repeated (first: {first!r}). "
            "Remove the repeats."
        )
