from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from helpers.spaces import embeddings
from pyarrow import feather

from repstitch.embeddings.reading import scan
from repstitch.embeddings.streaming import stream

N, DIM = 50, 4


def table_of(n: int = N) -> pa.Table:
    rows = embeddings(n, DIM)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.reshape(-1)), DIM)
    return pa.table({"id": pa.array(rows.ids), "vector": vectors, "number": np.arange(n)})


def put_shards(folder: Path, table: pa.Table) -> Path:
    folder.mkdir()
    for i, at in enumerate((0, 9, 9, 31)):  # the second file has no rows
        end = (9, 9, 31, N)[i]
        pq.write_table(table.slice(at, end - at), folder / f"{i}.parquet", row_group_size=6)
    return folder


def put_arrow(path: Path, table: pa.Table, compression: str, chunksize: int) -> Path:
    feather.write_feather(table, path, compression=compression, chunksize=chunksize)
    return path


def put_parquet(path: Path, table: pa.Table, **options) -> Path:
    pq.write_table(table, path, **options)
    return path


FILES: dict[str, Callable[[Path, pa.Table], Path]] = {
    "one row group": lambda folder, table: put_parquet(folder / "x.parquet", table),
    "row groups": lambda folder, table: put_parquet(folder / "x.parquet", table, row_group_size=7),
    "without dictionaries": lambda folder, table: put_parquet(folder / "x.parquet", table, use_dictionary=False),
    "folder": lambda folder, table: put_shards(folder / "x", table),
    "arrow": lambda folder, table: put_arrow(folder / "x.arrow", table, "uncompressed", N),
    "compressed arrow": lambda folder, table: put_arrow(folder / "x.arrow", table, "lz4", 11),
}


def opened(path: Path) -> pyarrow.dataset.Dataset:
    files = sorted(map(str, path.iterdir())) if path.is_dir() else str(path)
    return pyarrow.dataset.dataset(files, format="ipc" if path.suffix == ".arrow" else "parquet")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("size", [1, 7, 20, 1000])
@pytest.mark.parametrize("start", [0, 6, 7, 33, 49, 50])
def test_columns_are_streamed_in_order_from_any_row(tmp_path, kind, size, start):
    table = table_of()
    batches = list(stream(opened(FILES[kind](tmp_path, table)), ["vector", "number"], size, start))
    assert all(0 < batch.num_rows <= size for batch in batches)
    expected = table.select(["vector", "number"]).slice(start)
    assert pa.Table.from_batches(batches, schema=expected.schema) == expected


def test_a_table_in_memory_is_streamed_too():
    table = table_of()
    batches = stream(pyarrow.dataset.dataset(table), ["number"], 7, 8)
    assert pa.Table.from_batches(batches) == table.select(["number"]).slice(8)


def test_columns_get_the_types_of_the_first_file_and_missing_columns_are_null(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1, 2], pa.int64()), "b": ["x", "y"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": pa.array([3], pa.int32())}), tmp_path / "1.parquet")
    batches = stream(opened(tmp_path), ["a", "b"], 10)
    assert pa.Table.from_batches(batches).to_pydict() == {"a": [1, 2, 3], "b": ["x", "y", None]}


def test_row_groups_before_the_first_row_are_not_read(tmp_path, monkeypatch):
    path, read = FILES["row groups"](tmp_path, table_of()), []
    iter_batches = pq.ParquetFile.iter_batches

    def watch(self, size, row_groups, **options):
        read.append(list(row_groups))
        return iter_batches(self, size, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    numbers = [n for batch in stream(opened(path), ["number"], 10, 30) for n in batch.column(0).to_pylist()]
    assert numbers == list(range(30, N))
    assert read == [[4, 5, 6, 7]]  # of 7 rows each, so row 30 is in group 4


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("start", [0, 17])
def test_batches_have_the_same_size_whatever_the_row_groups(tmp_path, monkeypatch, kind, start):
    monkeypatch.setattr("repstitch.embeddings.arrow_tables.PIECE_BYTES", 3 * 4 * DIM)
    table = table_of()
    batches = list(scan(FILES[kind](tmp_path, table)).batches(20, start))
    assert [len(batch) for batch in batches] == [min(20, N - at) for at in range(start, N, 20)]
    assert [key for batch in batches for key in (batch.ids if batch.ids is not None else ())] == table[
        "id"
    ].to_pylist()[start:]
    vectors = np.concatenate([batch.vectors for batch in batches])
    np.testing.assert_array_equal(vectors, embeddings(N, DIM).vectors[start:])
    assert all(batch.vectors.flags.writeable for batch in batches)


def test_batches_that_were_read_do_not_change_when_others_are_read(tmp_path):
    batches = list(scan(FILES["row groups"](tmp_path, table_of())).batches(9))
    np.testing.assert_array_equal(batches[0].vectors, embeddings(N, DIM).vectors[:9])


@pytest.mark.parametrize("n_now", [30, 70])
def test_a_file_that_changes_after_it_was_opened_is_read_to_its_end(tmp_path, n_now):
    path = tmp_path / "x.parquet"
    pq.write_table(table_of(), path)
    opened_before = scan(path)
    pq.write_table(table_of(n_now), path)
    assert [len(batch) for batch in opened_before.batches(20)][:-1] == [20] * (n_now // 20)
    assert sum(len(batch) for batch in opened_before.batches(20)) == n_now
