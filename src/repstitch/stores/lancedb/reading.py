"""Read rows of a LanceDB table: all of them, a random sample, those with some ids, and both columns of a job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import LanceFragment

from repstitch.spaces import SPACE_KEY
from repstitch.stores.arrow_columns import draw_rows, id_texts
from repstitch.stores.lancedb.filling import Filling
from repstitch.stores.lancedb.job import Columns
from repstitch.stores.lancedb.opening import explained, id_conditions, quoted
from repstitch.stores.lancedb.states import Need, first_word
from repstitch.stores.store import NATIVE, Compared

READING = "The table cannot be read"


@dataclass(frozen=True)
class FragmentRows:
    """The rows of a fragment that a condition selects."""

    fragment: LanceFragment
    where: str | None

    def count_rows(self) -> int:
        with explained(READING):
            return self.fragment.count_rows(self.where)

    def to_batches(self, columns: Sequence[str], schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
        batches = self.fragment.to_batches(columns=list(columns), filter=self.where, io_buffer_size=2**26)
        while True:
            with explained(READING):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class LanceRows:
    """The rows of one version of a table that a condition selects."""

    dataset: lance.LanceDataset
    vector: str
    where: str | None

    @property
    def schema(self) -> pa.Schema:
        schema = self.dataset.schema
        card = (schema.field(self.vector).metadata or {}).get(SPACE_KEY)
        others = {key: value for key, value in (schema.metadata or {}).items() if key != SPACE_KEY}
        return schema.with_metadata(others | ({SPACE_KEY: card} if card else {}))

    def count_rows(self) -> int:
        with explained(READING):
            return self.dataset.count_rows(self.where)

    def head(self, num_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
        names = None if columns is None else list(columns)
        with explained(READING):
            return self.dataset.scanner(columns=names, filter=self.where, limit=num_rows).to_table()

    def get_fragments(self) -> Iterator[Any]:
        return (FragmentRows(fragment, self.where) for fragment in self.dataset.get_fragments())


def sample(
    dataset: lance.LanceDataset, vector: str, where: str | None, n: int, seed: int, columns: Sequence[str]
) -> pa.Table:
    """Return n rows with a vector, drawn at random. Only the row ids are read if there is a condition."""
    names = list(dict.fromkeys([*columns, vector]))
    with explained(READING):
        if where is not None:
            draw = np.random.default_rng(seed)
            condition = f"({where}) and {quoted(vector)} is not null"
            ids = dataset.scanner(columns=[], filter=condition, with_row_id=True).to_table()["_rowid"].to_numpy()
            chosen = np.sort(draw.choice(ids, min(n, len(ids)), replace=False))
            rows = dataset._take_rows(chosen.tolist(), columns=names)
            return rows.take(draw.permutation(len(rows))).select(list(columns))

        def read(positions: np.ndarray) -> pa.Table:
            return dataset.take(positions.tolist(), columns=names)

        return draw_rows(dataset.count_rows(), n, seed, vector, read).select(list(columns))


def take(dataset: lance.LanceDataset, id_column: str, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Return the rows with these ids."""
    parts = []
    for where in id_conditions(dataset.schema, id_column, ids):
        with explained(READING):
            parts.append(dataset.to_table(columns=list(columns), filter=where))
    return pa.concat_tables(parts)


def id_batches(dataset: lance.LanceDataset, id_column: str) -> Iterator[pa.Array]:
    """Yield the column of ids in pieces."""
    for batch in dataset.to_batches(columns=[id_column]):
        yield batch[id_column]


def compare(
    filling: Filling, dataset: lance.LanceDataset, columns: Columns, id_column: str, where: str | None
) -> Iterator[Compared]:
    """Yield the rows of one version of a table that have an old or a new vector, with their states."""
    for fragment in dataset.get_fragments():
        for batch in filling.batches(fragment, columns, id_column, where):
            words = np.asarray([first_word(state) for state in batch.states.to_pylist()], object)
            intact = batch.needs == Need.NOTHING
            if columns.is_cut_over:  # readers' vectors that were written since need no state
                words[batch.has_new & (words == "")] = NATIVE
            new = np.full((len(words), filling.dims[1]), np.nan, np.float32)
            if batch.has_new.any():
                new[batch.has_new] = batch.new[batch.has_new]
            rows, ids = np.flatnonzero(batch.has_old | batch.has_new), id_texts(batch.ids or pa.array([], pa.string()))
            yield Compared(ids[rows], batch.old[rows], new[rows], words[rows], intact[rows])
