"""Read rows of a folder of Parquet files: all, a random sample, those with some ids, near ones, and both sides."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from repstitch.errors import InputError, one_line
from repstitch.stores.arrow_columns import draw_rows, has_vector, id_texts, matrix, unit
from repstitch.stores.checksums import checksums
from repstitch.stores.parquet.files import (
    VERSION_KEY,
    is_old_file,
    list_files,
    open_file,
    present,
    read_batches,
    read_errors,
    read_mark,
    token_of,
    with_vectors,
)
from repstitch.stores.parquet.native import native_file, read_native
from repstitch.stores.store import NATIVE, SKIPPED, TRANSLATED, Compared, Hits


@dataclass(frozen=True)
class FileRows:
    """The rows of a file."""

    file: Path
    vector: str
    dim: int

    def count_rows(self) -> int:
        with open_file(self.file) as opened:
            return opened.metadata.num_rows

    def to_batches(self, columns: Sequence[str], schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
        for batch in read_batches(self.file, columns):
            with read_errors(self.file):
                conformed = with_vectors(batch, self.vector, self.dim)
            yield conformed


@dataclass(frozen=True)
class FolderRows:
    """The rows of the files that a folder has at one moment."""

    files: tuple[Path, ...]
    vector: str
    dim: int

    @property
    def schema(self) -> pa.Schema:
        with open_file(self.files[0]) as opened:
            schema = opened.schema_arrow
        field = schema.field(self.vector)
        if not pa.types.is_fixed_size_list(field.type) or field.type.value_type == pa.float64():
            field = field.with_type(pa.list_(pa.float32(), self.dim))
        return schema.set(schema.get_field_index(self.vector), field)

    def count_rows(self) -> int:
        return sum(part.count_rows() for part in self.get_fragments())

    def head(self, num_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
        names = list(self.schema.names if columns is None else columns)
        batches, n = [], 0
        for part in self.get_fragments():
            for batch in part.to_batches(names):
                batches.append(pa.Table.from_batches([batch.slice(0, num_rows - n)]))
                n += len(batches[-1])
                if n == num_rows:
                    return self._together(batches)
        return self._together(batches)

    def get_fragments(self) -> Iterator[Any]:
        return (FileRows(file, self.vector, self.dim) for file in self.files)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield columns of all rows."""
        for part in self.get_fragments():
            yield from part.to_batches(columns)

    def sample(self, n: int, seed: int, columns: Sequence[str]) -> pa.Table:
        """Return n rows with a vector, drawn at random; row groups without such rows are not read."""
        names = list(dict.fromkeys([*columns, self.vector]))
        counts = [part.count_rows() for part in self.get_fragments()]
        starts = np.cumsum([0, *counts])

        def read(positions: np.ndarray) -> pa.Table:
            ends = np.searchsorted(positions, starts)
            parts = [
                self._take(file, positions[first:last] - start, names)
                for file, start, first, last in zip(self.files, starts[:-1], ends[:-1], ends[1:], strict=True)
            ]
            return self._together(parts)

        return draw_rows(sum(counts), n, seed, self.vector, read).select(list(columns))

    def _take(self, file: Path, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Return the rows of a file at sorted positions."""
        with open_file(file) as opened, read_errors(file):
            groups = range(opened.metadata.num_row_groups)
            starts = np.cumsum([0, *(opened.metadata.row_group(group).num_rows for group in groups)])
            names = present(columns, opened.schema_arrow)
            parts = [opened.schema_arrow.empty_table().select(names)]
            for group in groups:
                inside = positions[(positions >= starts[group]) & (positions < starts[group + 1])] - starts[group]
                if len(inside):
                    rows = opened.read_row_group(group, columns=names, use_threads=False)
                    parts.append(rows.select(names).take(inside))
            batches = [
                with_vectors(batch, self.vector, self.dim)
                for part in parts
                for batch in _batches(part.combine_chunks())
            ]
        return pa.Table.from_batches(batches)

    def take(self, id_column: str, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the rows with these ids."""
        wanted = pa.array(list(ids), pa.string())
        parts = [self.schema.empty_table().select(present(columns, self.schema))]
        for batch in self.batches(list(dict.fromkeys([*columns, id_column]))):
            is_wanted = pc.call_function("is_in", [batch[id_column].cast(pa.string())], pc.SetLookupOptions(wanted))
            rows = batch.filter(is_wanted).select(present(columns, batch.schema))
            parts.append(pa.Table.from_batches([rows]))
        return self._together(parts).select(list(columns))

    def _together(self, parts: list[pa.Table]) -> pa.Table:
        """Return rows of several files, which may have different columns, as one table."""
        try:
            return pa.concat_tables(parts, promote_options="permissive")
        except pa.ArrowException as error:
            folder = self.files[0].parent
            raise InputError(f"The files of {folder} must have columns of types that fit: {one_line(error)}") from None


def _batches(table: pa.Table) -> list[pa.RecordBatch]:
    return table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]


@dataclass(frozen=True)
class Sides:
    """The old and the new folder of a job, to compare their rows."""

    old: Path
    new: Path
    vector: str
    id: str
    dims: tuple[int, int]
    version: str

    def compare(self, ids: Sequence[str] | None) -> Iterator[Compared]:
        """Yield the rows that have an old or a new vector, or those of them with these ids."""
        old, new = list_files(self.old), list_files(self.new)
        for name in sorted(old.keys() | new.keys()):
            for part in self._compare_file(name, name in old, name in new):
                rows = np.flatnonzero(~np.isnan(part.old).all(axis=1) | ~np.isnan(part.new).all(axis=1))
                if ids is not None:
                    rows = rows[np.isin(part.ids[rows], list(ids))]
                yield Compared(part.ids[rows], part.old[rows], part.new[rows], part.states[rows], part.intact[rows])

    def _compare_file(self, name: str, has_old: bool, has_new: bool) -> Iterator[Compared]:
        mark = read_mark(self.new / name) if has_new else None
        sources = token_of(self.old / name), token_of(native_file(self.new, name))
        if not has_new or (has_old and mark is not None and not mark.is_of(*sources)):
            yield from self._one_side(self.old, name, "", is_new=False)
        elif mark is None and is_old_file(self.new / name, self.vector, self.dims):
            yield from self._one_side(self.new, name, "", is_new=False)
        elif not has_old or mark is None:
            yield from self._one_side(self.new, name, NATIVE if mark is None else "", is_new=True)
        else:
            with open_file(self.new / name) as opened:
                version = (opened.metadata.metadata or {}).get(VERSION_KEY, b"").decode()
            yield from self._both_sides(name, version == self.version)

    def _one_side(self, folder: Path, name: str, state: str, is_new: bool) -> Iterator[Compared]:
        """Yield the rows of a file that has no counterpart: native ones are right, others are still to do."""
        for batch in read_batches(folder / name, [self.id, self.vector]):
            n = batch.num_rows
            with read_errors(folder / name):
                rows, _ = matrix(batch[self.vector], self.dims[is_new])
            sides = [np.full((n, dim), np.nan, np.float32) for dim in self.dims]
            sides[is_new] = rows
            states = np.full(n, state, dtype=object)
            yield Compared(id_texts(batch[self.id]), sides[0], sides[1], states, np.full(n, state == NATIVE))

    def _both_sides(self, name: str, is_of_version: bool) -> Iterator[Compared]:
        columns, native = [self.id, self.vector], read_native(native_file(self.new, name), self.dims[1])
        batches = (read_batches(folder / name, columns) for folder in (self.old, self.new))
        try:
            for one, other in zip(*batches, strict=True):
                if not one[self.id].equals(other[self.id]):
                    raise ValueError("the ids differ")
                with read_errors(self.new / name):
                    old, has_old = matrix(one[self.vector], self.dims[0])
                    new, has_new = matrix(other[self.vector], self.dims[1])
                states = np.where(has_new, TRANSLATED, np.where(has_old, SKIPPED, "")).astype(object)
                intact = np.full(len(old), is_of_version) & (has_old | ~has_new)
                positions = native.find(one[self.id], checksums(old, has_old))
                is_native = positions >= 0
                states[is_native] = NATIVE
                intact[is_native] = (new[is_native] == native.vectors[positions[is_native]]).all(axis=1)
                yield Compared(id_texts(one[self.id]), old, new, states, intact)
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"{self.new / name} must have the same rows as {self.old / name}; remove it, and let the job run again."
            ) from None


def native_rows(folder: Path, names: Sequence[str], vector: str, dim: int, limit: int) -> np.ndarray:
    """Return vectors (n, dim) of files of a folder, at most `limit`."""
    parts, n = [np.empty((0, dim), np.float32)], 0
    for name in names:
        for batch in read_batches(folder / name, [vector]):
            if n >= limit:
                break
            with read_errors(folder / name):
                rows, valid = matrix(batch[vector], dim)
            parts.append(rows[valid & has_vector(rows)])
            n += len(parts[-1])
    return np.concatenate(parts)[:limit]


def search_exactly(batches: Iterable[pa.RecordBatch], names: Sequence[str], queries: np.ndarray, k: int) -> Hits:
    """Search all rows by cosine in one pass. `names` are the columns of ids and of vectors. Times are the mean.

    Rows without a vector, and those of zeros, which have no cosine, are no hits.
    """
    started = time.perf_counter()
    n, dim = queries.shape
    ids = np.full((n, 0), "", dtype=object)
    scores = np.empty((n, 0), np.float32)
    units = unit(np.asarray(queries, np.float32))
    for batch in batches:
        rows, valid = matrix(batch[names[1]], dim)
        rows = unit(rows)
        valid &= np.isfinite(rows).all(axis=1) & rows.any(axis=1)
        if not valid.any():
            continue
        new_scores = units @ rows[valid].T
        new_ids = np.broadcast_to(id_texts(batch[names[0]])[valid], new_scores.shape)
        scores, ids = np.concatenate([scores, new_scores], axis=1), np.concatenate([ids, new_ids], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    padded = np.full((n, k), "", dtype=object)
    padded[:, : ids.shape[1]] = ids
    return Hits(padded, np.full(n, (time.perf_counter() - started) / max(1, n)))
