"""A table of LanceDB with writers and readers, as an application has them, for the tests of stores."""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lance
import lancedb
import numpy as np
import pyarrow as pa

from repstitch.stores.checksums import checksums
from repstitch.stores.lancedb.states import split, states

TRIES = 100
WRITES_PER_COMPACTION, WRITE_SECONDS = 50, 0.02
TABLE = "docs"


def vectors_of(rows: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """Return vectors (n, d) as a column; a row of NaN is null."""
    rows = np.asarray(rows, np.float32)
    mask = np.isnan(rows).any(axis=1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1], mask=pa.array(mask))
    return column if kind is None else column.cast(kind)


def metric_of(index: bool | str) -> str:
    """Return the metric of an index that a test asks for: cosine unless it names another one."""
    return "cosine" if index is True else str(index)


class LanceWorld:
    """A LanceDB database in a folder with the table `docs`."""

    name = "lancedb"
    writes: ClassVar[int] = 5  # of each application between two steps of a job
    pause: ClassVar[float] = 0.05  # seconds between two writes of an application
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path):
        self.database = folder / "database"
        self.path = self.database / f"{TABLE}.lance"
        self.n_writes = itertools.count(1)

    @property
    def latest(self) -> lance.LanceDataset:
        return lance.dataset(str(self.path))

    def create(
        self, ids: Sequence[int], vectors: np.ndarray, *, index: bool | str = False, lang: Sequence[str] | None = None
    ) -> str:
        self.database.mkdir(parents=True, exist_ok=True)
        rows = self._rows(ids, vectors, lang)
        lance.write_dataset(rows, str(self.path), max_rows_per_file=max(1, -(-len(rows) // 5)))
        if index:
            self.latest.create_index(
                "vector", "IVF_HNSW_SQ", num_partitions=1, metric=metric_of(index), m=12, ef_construction=60
            )
        return f"lancedb://{self.database}?table={TABLE}&vector=vector&id=id"

    @staticmethod
    def _rows(ids: Sequence[int], vectors: np.ndarray, lang: Sequence[str] | None = None) -> pa.Table:
        return pa.table(
            {
                "id": pa.array(np.asarray(ids, np.int64)),
                "body": pa.array([f"text {number}" for number in ids]),
                "lang": pa.array(["en"] * len(ids) if lang is None else list(lang)),
                "n": pa.array(np.zeros(len(ids), np.int64)),
                "vector": vectors_of(vectors),
            }
        )

    def _write(self, write) -> None:
        """Write, and compact the table from time to time, as LanceDB advises."""
        self._again(write)
        time.sleep(WRITE_SECONDS)  # of an application on another machine
        if next(self.n_writes) % WRITES_PER_COMPACTION == 0:
            self.compact()

    @staticmethod
    def _again(write) -> None:
        """Write again until no other program's commit is in the way, as LanceDB's own clients do."""
        for attempt in range(TRIES):
            try:
                write()
                return
            except OSError as error:
                if "should have type fixed_size_list" in str(error):
                    raise OSError(f"the vectors have another dimension: {error}") from error
                if ("onflict" not in str(error) and "preempted" not in str(error)) or attempt == TRIES - 1:
                    raise

    def insert(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        self._write(lambda: lance.write_dataset(self._rows(ids, vectors), str(self.path), mode="append"))

    def _merge(self, rows: pa.Table) -> None:
        self._write(lambda: self.latest.merge_insert("id").when_matched_update_all().execute(rows))

    def update(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        self._merge(pa.table({"id": pa.array(np.asarray(ids, np.int64)), "vector": vectors_of(vectors)}))

    def touch(self, ids: Sequence[int]) -> None:
        self._write(lambda: self.latest.update({"n": "n + 1"}, where=_in(ids)))

    def delete(self, ids: Sequence[int]) -> None:
        self._write(lambda: self.latest.delete(_in(ids)))

    def dual(self, ids: Sequence[int], old: np.ndarray, new: np.ndarray, new_name: str = "vector_new") -> None:
        columns = {"id": pa.array(np.asarray(ids, np.int64)), "vector": vectors_of(old), new_name: vectors_of(new)}
        self._merge(pa.table(columns))

    def corrupt(self, key: int, vector: np.ndarray) -> None:
        """Change a new vector, with a state that fits it, as if the job had written it."""
        row = self.latest.to_table(columns=["vector", "vector_new_state"], filter=f"id = {key}").to_pylist()[0]
        old = np.array([row["vector"]], np.float32)
        valid = np.ones(1, bool)
        state = states(split(row["vector_new_state"])[0], checksums(old, valid), checksums(vector[None], valid))
        columns = {"id": pa.array([key], pa.int64()), "vector_new": vectors_of(vector[None]), "vector_new_state": state}
        self._merge(pa.table(columns))

    def compact(self) -> None:
        self._again(lambda: self.latest.optimize.compact_files())

    def read(self) -> dict[int, tuple[str, np.ndarray | None]]:
        rows = lancedb.connect(str(self.database)).open_table(TABLE).to_arrow().to_pydict()
        return {
            number: (body, None if vector is None else np.asarray(vector, np.float32))
            for number, body, vector in zip(rows["id"], rows["body"], rows["vector"], strict=True)
        }

    def dims_of_some(self) -> set[int]:
        """Return the lengths of the vectors of some rows, as one read sees them."""
        rows = lancedb.connect(str(self.database)).open_table(TABLE).search().limit(20).to_arrow()["vector"].to_pylist()
        return {len(vector) for vector in rows if vector is not None}

    def column(self, name: str) -> dict[int, np.ndarray | None]:
        rows = self.latest.to_table(columns=["id", name]).to_pydict()
        assert len(set(rows["id"])) == len(rows["id"])
        return {
            number: None if vector is None else np.asarray(vector, np.float32)
            for number, vector in zip(rows["id"], rows[name], strict=True)
        }

    def schema(self) -> object:
        table = self.latest
        fields = [(f.name, str(f.type), f.nullable, f.metadata) for f in table.schema]
        indexes = [(index.name, index.index_type, index.field_names) for index in table.describe_indices()]
        others = sorted(file.name for file in self.database.iterdir())
        return fields, table.schema.metadata, indexes, sorted(table.tags.list()), others

    def close(self) -> None:
        """Do nothing: a version of a table holds no connection."""


def _in(ids: Sequence[int]) -> str:
    return f"id in ({', '.join(map(str, ids)) or 'null'})"
