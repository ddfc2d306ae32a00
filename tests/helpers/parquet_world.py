"""A folder of Parquet files, as an application writes and reads it, for the tests of stores.

Its writers write whole files, one after another: a folder has no writers at the same time as a job.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from helpers.lance_world import LanceWorld, vectors_of
from repstitch.stores.parquet.files import MARK_KEY

N_FILES = 5


class ParquetWorld:
    """A folder `docs` of Parquet files."""

    name = "parquet"
    writes: ClassVar[int] = 5  # of each application between two steps of a job
    pause: ClassVar[float] = 0.05  # seconds between two writes of an application
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path):
        self.parent = folder / "files"
        self.path = self.parent / "docs"
        self.n_written = 0

    @property
    def beside(self) -> Path:
        return self.path.with_name("docs.new")

    def create(
        self, ids: Sequence[int], vectors: np.ndarray, *, index: bool | str = False, lang: Sequence[str] | None = None
    ) -> str:
        self.path.mkdir(parents=True)
        rows = LanceWorld._rows(ids, vectors, lang)
        size = max(1, -(-len(rows) // N_FILES))
        for number, at in enumerate(range(0, len(rows), size)):
            pq.write_table(rows.slice(at, size), self.path / f"part-{number}.parquet", row_group_size=400)
        return str(self.path)

    def _rewrite(self, ids: Sequence[int], change) -> None:
        """Write each file again that has rows with these ids, with `change(rows, mask)` in place of its rows."""
        for file in sorted(self.path.glob("*.parquet")):
            rows = pq.read_table(file)
            mask = np.isin(rows["id"].to_numpy(), list(ids))
            if mask.any():
                pq.write_table(change(rows, mask), file)

    def insert(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        self.n_written += 1
        pq.write_table(LanceWorld._rows(ids, vectors), self.path / f"late-{self.n_written}.parquet")

    def update(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        new = dict(zip(ids, np.asarray(vectors, np.float32).tolist(), strict=True))

        def change(rows: pa.Table, mask: np.ndarray) -> pa.Table:
            values = [
                new.get(number, vector)
                for number, vector in zip(rows["id"].to_pylist(), rows["vector"].to_pylist(), strict=True)
            ]
            at = rows.schema.get_field_index("vector")
            return rows.set_column(at, "vector", pa.array(values, rows.schema.field("vector").type))

        self._rewrite(ids, change)

    def touch(self, ids: Sequence[int]) -> None:
        def change(rows: pa.Table, mask: np.ndarray) -> pa.Table:
            return rows.set_column(rows.schema.get_field_index("n"), "n", pa.array(rows["n"].to_numpy() + mask))

        self._rewrite(ids, change)

    def delete(self, ids: Sequence[int]) -> None:
        self._rewrite(ids, lambda rows, mask: rows.filter(pa.array(~mask)))

    def dual(self, ids: Sequence[int], old: np.ndarray, new: np.ndarray, new_name: str = "vector_new") -> None:
        """Write the rows to a file of their own in both folders."""
        self.delete(ids)
        self.n_written += 1
        for folder, vectors in ((self.path, old), (self.beside, new)):
            pq.write_table(LanceWorld._rows(ids, vectors), folder / f"dual-{self.n_written}.parquet")

    def corrupt(self, key: int, vector: np.ndarray) -> None:
        """Change a new vector in a file that keeps its mark, as if the job had written it."""
        for file in sorted(self.beside.glob("*.parquet")):
            table = pq.read_table(file)
            ids = table["id"].to_pylist()
            if key in ids:
                rows = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1).copy()
                rows[ids.index(key)] = vector
                place = table.schema.get_field_index("vector")
                field = table.schema.field("vector")
                mark = pq.read_metadata(file).metadata[MARK_KEY]
                table = table.set_column(place, field, vectors_of(rows))
                with pq.ParquetWriter(file, table.schema) as writer:
                    writer.write_table(table)
                    writer.add_key_value_metadata({MARK_KEY: mark})

    def _table(self, folder: Path) -> pa.Table:
        return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])

    def read(self) -> dict[int, tuple[str, np.ndarray | None]]:
        if not self.path.exists():
            return {}  # between the two renames of a cut-over
        rows = self._table(self.path).to_pydict()
        return {
            number: (body, None if vector is None else np.asarray(vector, np.float32))
            for number, body, vector in zip(rows["id"], rows["body"], rows["vector"], strict=True)
        }

    def column(self, name: str) -> dict[int, np.ndarray | None]:
        """Return the vectors of the folder that stands for a column: `vector`, `vector_new` or `vector_old`."""
        folder = self.path.with_name("docs" + name.removeprefix("vector").replace("_", "."))
        rows = self._table(folder).to_pydict()
        assert len(set(rows["id"])) == len(rows["id"])
        return {
            number: None if vector is None else np.asarray(vector, np.float32)
            for number, vector in zip(rows["id"], rows["vector"], strict=True)
        }

    def schema(self) -> object:
        files = sorted(self.path.rglob("*"))
        contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
        return contents, sorted(path.name for path in self.parent.iterdir())

    def close(self) -> None:
        """Do nothing: no file stays open."""
