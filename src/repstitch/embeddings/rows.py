"""Rows of vectors with their ids and their space: in memory (`Embeddings`), or opened but not yet read (`Scan`)."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from repstitch.arguments import check_unmasked
from repstitch.embeddings.ids import texts, without_views
from repstitch.errors import InputError, one_line
from repstitch.spaces import Space

BATCH_ROWS = 16_384
COLUMNS = ("ids", "groups", "labels")
RowIndex = slice | Sequence[int] | np.ndarray  # a range of rows, their positions, or a mask
ONE_VECTOR_PER_ITEM = "must have one vector per item, as floats of shape (n, dim)"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors from one encoder, one row per item, and the space that they belong to.

    Two objects are equal only if they are the same object.

    Args:
        vectors: A NumPy array (n, dim) of floats, usually float16 or float32. `read` converts lists and tensors.
        space: The space of the vectors. Its `dim` must be their number of dimensions.
        ids: One id per row (n,), used to pair the rows of two spaces. Ids that are not text are converted to text.
        groups: One group per row (n,). A split keeps the pairs of one group together.
        declared: True if a card or the caller has stated the space, False if it was guessed from the file's name.
        labels: One class per row (n,).
        payload: Further columns, one entry per row, which `write` stores beside the vectors.
        has_range_index: True if the range index of a pandas data frame numbers the rows. If it begins at 0, `ids` is
            None, and the positions are the ids beside rows of a larger data frame, whose index begins elsewhere.

    Raises:
        InputError: If `vectors` is not an unmasked array of floats of shape (n, dim), if `ids`, `groups`, `labels` or
            `payload` do not have one entry per row, or if an id or a group is missing or cannot be written as text.
    """

    vectors: np.ndarray
    space: Space
    ids: np.ndarray | None = None
    groups: np.ndarray | None = None
    declared: bool = True
    labels: np.ndarray | None = None
    payload: pa.Table | None = None
    has_range_index: bool = False

    def __post_init__(self):
        subject = f"`vectors` of space {self.space.name!r}"
        check_unmasked(self.vectors, subject)
        if not isinstance(self.vectors, np.ndarray):
            kind = type(self.vectors).__name__
            raise InputError(f"{subject} must be a NumPy array; got {kind}. `read` converts lists and tensors.")
        if self.vectors.ndim != 2 or self.vectors.shape[1] != self.space.dim:
            advice = "" if self.vectors.ndim == 2 else shape_advice(self.vectors)
            raise InputError(f"{subject} must have shape (n, {self.space.dim}); got {self.vectors.shape}.{advice}")
        if self.vectors.dtype.kind != "f":
            raise InputError(f"{subject} must be floats; got {self.vectors.dtype}.{shape_advice(self.vectors)}")
        for name in COLUMNS:
            if getattr(self, name) is not None:
                column = np.asarray(getattr(self, name))
                if column.shape != (len(self.vectors),):
                    raise InputError(
                        f"`{name}` must have one entry per row ({len(self.vectors)}); got shape {column.shape}."
                    )
                is_text = name == "labels" and column.dtype.kind in "OU"  # a row may have no label
                object.__setattr__(self, name, column if is_text else texts(column, f"`{name}`"))
        if self.payload is not None and len(self.payload) != len(self.vectors):
            raise InputError(f"`payload` must have one entry per row ({len(self.vectors)}); got {len(self.payload)}.")

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        parts = [f"{len(self):,} rows of {self.space.name!r}", f"{self.space.dim:,} dimensions"]
        parts += [str(self.vectors.dtype), *(name for name in COLUMNS if getattr(self, name) is not None)]
        return f"Embeddings({', '.join(parts)})"

    def take(self, rows: RowIndex) -> "Embeddings":
        """Select rows.

        Args:
            rows: Positions of rows, a slice, or a mask (n,).

        Returns:
            New `Embeddings` with these rows, in that order, and their ids, groups, labels and payload.
        """
        columns = {name: take_entries(getattr(self, name), rows) for name in COLUMNS}
        payload = None if self.payload is None else without_views(self.payload).take(np.arange(len(self))[rows])
        has_range_index = self.has_range_index and self.ids is not None
        return replace(self, vectors=self.vectors[rows], payload=payload, has_range_index=has_range_index, **columns)


EmbeddingsLike = str | os.PathLike[str] | Embeddings | ArrayLike  # everything that `reading.read` accepts


Batch = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, pa.Table | None]  # vectors, ids, groups, payload


@dataclass(frozen=True)
class Scan:
    """Embeddings that are opened but not yet read: their size and their space, and methods that read the rows.

    `id_type` is the Arrow type in which the ids are written: that of the file's column if it has one. `payload` are the
    further columns that are read, and `left_out` the names of those that are not.
    """

    path: str
    n_rows: int
    space: Space
    declared: bool
    has_ids: bool
    _rows: Callable[[int, int], Iterator[Batch]] = field(repr=False)
    id_type: pa.DataType = field(default_factory=pa.string)
    payload: pa.Schema = field(default_factory=lambda: pa.schema([]), repr=False)
    left_out: tuple[str, ...] = field(default=(), repr=False)
    has_groups: bool = False
    has_range_index: bool = False

    def batches(self, rows: int = BATCH_ROWS, start: int = 0) -> Iterator[Embeddings]:
        """Yield the rows from `start` on, in file order, in batches of at most `rows`."""
        stream = self._rows(rows, start)
        while True:
            try:
                vectors, ids, groups, payload = next(stream)
            except StopIteration:
                return
            except InputError:
                raise
            except Exception as error:  # the readers of damaged files raise nearly every exception
                raise InputError(f"{self.path} cannot be read to its end: {one_line(error)}") from None
            yield Embeddings(vectors, self.space, ids, groups, self.declared, payload=payload)
            del vectors, payload  # before others are read

    def read(self) -> Embeddings:
        """Read all rows into memory."""
        parts = list(self.batches())
        if not parts:
            raise InputError(f"{self.path} has no rows; it must have at least one vector.")

        def join(name: str) -> np.ndarray | None:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else np.concatenate(columns)

        vectors = parts[0].vectors if len(parts) == 1 else np.concatenate([p.vectors for p in parts])
        payload = [part.payload for part in parts if part.payload is not None]
        return Embeddings(
            vectors,
            self.space,
            join("ids"),
            join("groups"),
            self.declared,
            payload=pa.concat_tables(payload) if payload else None,
            has_range_index=self.has_range_index,
        )


def shape_advice(array: np.ndarray) -> str:
    """Return advice about an array that is not floats of shape (n, dim), as the end of an error message."""
    if array.dtype.kind in "US":
        return " Embed texts first, then pass their vectors."
    if array.ndim == 3:
        return " If the second axis is tokens, pool them first, e.g. `X.mean(axis=1)`, or take one token, `X[:, 0]`."
    if array.ndim == 1 and array.dtype.kind == "O":
        return " Stack a list or column of vectors with `np.stack(X)`."
    if array.ndim == 1:
        return " Pass a single vector as one row, `X[None]`."
    if array.ndim == 2 and array.dtype.kind in "biu":
        return ' Convert it to floats with `X.astype("float32")`.'
    return ""


def take_entries(column: np.ndarray | None, rows: RowIndex) -> np.ndarray | None:
    """Return the entries of a column at these rows, or None if there is no column."""
    return None if column is None else column[rows]


def with_range_ids(sides: Sequence[Embeddings]) -> list[Embeddings]:
    """Return embeddings with positions as ids, if the range index of a data frame numbers the rows of all of them.

    If it begins at 0 for all, they need no ids.
    """
    if not all(side.has_range_index for side in sides) or all(side.ids is None for side in sides):
        return list(sides)
    return [side if side.ids is not None else replace(side, ids=row_numbers(0, len(side))) for side in sides]


def row_numbers(start: int, stop: int) -> np.ndarray:
    """Return ids for rows that have none: their positions, as text."""
    return np.arange(start, stop).astype(str).astype(object)


def join_ids(ids: Iterable[str], separator: str = "\0") -> bytes:
    """Return ids as bytes to hash. Other ids give other bytes, because a separator inside an id is escaped."""
    return separator.join(key.replace("\1", "\1\1").replace(separator, "\1\2") for key in ids).encode()


def as_float(values: np.ndarray, dtype: np.typing.DTypeLike, path: str, first_row: int) -> np.ndarray:
    """Return rows as floats of another type. Raises InputError if a finite number would become Inf."""
    with np.errstate(over="ignore"):
        rows = values.astype(dtype, copy=False)
    if rows.dtype.itemsize < values.dtype.itemsize and not np.isfinite(rows).all():
        overflows = (np.isinf(rows) & np.isfinite(values)).any(axis=1)
        if overflows.any():
            row = first_row + int(overflows.argmax())
            raise InputError(f"{path} must have numbers that {rows.dtype} can represent; row {row} has others.")
    return rows


def invalid_rows(X: np.ndarray) -> dict[str, np.ndarray]:
    """Return masks (n,) of the rows that cannot be used, by reason."""
    finite = np.asarray(np.isfinite(X).all(axis=1))
    return {"NaN or Inf": ~finite, "all zeros": finite & ~np.asarray(X.any(axis=1))}


def check_unique(ids: np.ndarray, name: str) -> None:
    """Raise InputError if an id occurs twice. The message calls the rows `name`."""
    if len(set(ids)) < len(ids):
        earlier: set = set()
        first = next(key for key in ids if key in earlier or earlier.add(key))
        raise InputError(
            f"Ids must be unique; repeated ids in {name}: {len(ids) - len(set(ids))} (first: {first!r}). "
            "Remove the repeats, or name another column of ids with `id_column`."
        )
