"""The file of held-out rows beside a stitcher."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.stitchers.held_out_rows import STITCHER_KEY, held_out_file, keep_rows, read_held_out

N, DIM = 30, 4
IDS = pa.array([f"id {i}" for i in range(N)])
KIND = pa.list_(pa.float32(), DIM)


@pytest.fixture
def stitcher(tmp_path):
    return tmp_path / "stitcher"


def test_rows_are_written_and_read_again(stitcher):
    rows = keep_rows(np.array(IDS.to_pylist(), object), gaussian(N, DIM, 0))
    rows.write(stitcher, "v1")
    again = read_held_out(stitcher, "v1", DIM)
    assert again is not None
    assert again.ids.tolist() == rows.ids.tolist()
    assert np.array_equal(again.vectors, rows.vectors)
    assert read_held_out(stitcher, "v2", DIM) is None


def test_translations_and_source_rows_are_kept_with_the_vectors(stitcher):
    sides = gaussian(N, DIM, 0), gaussian(N, DIM, 1), gaussian(N, 7, 2)
    ids = np.array(IDS.to_pylist(), object)
    rows = keep_rows(ids, *sides)
    rows.write(stitcher, "v1")
    again = read_held_out(stitcher, "v1", DIM)
    assert again is not None
    place = {key: row for row, key in enumerate(ids)}
    order = [place[key] for key in again.ids[: len(again.vectors)]]
    assert sorted(order) != order
    for side, matrix in zip(sides, (again.vectors, again.translated, again.source), strict=True):
        assert matrix is not None
        assert np.array_equal(matrix, side[order])


def test_translations_of_another_dimension_are_refused(stitcher):
    keep_rows(np.array(IDS.to_pylist(), object), gaussian(N, DIM), gaussian(N, DIM + 1)).write(stitcher, "v1")
    with pytest.raises(InputError, match="columns vector and translated must have as many numbers"):
        read_held_out(stitcher, "v1", DIM)


VECTORS = {
    "all null": pa.nulls(N, KIND),
    "null without a type": pa.nulls(N),
    "lists": pa.array([[1.0] * DIM] * N),
    "another dimension": pa.array([[1.0] * 3] * N, pa.list_(pa.float32(), 3)),
    "lists of text": pa.array([["a"] * DIM] * N, pa.list_(pa.string(), DIM)),
    "NaN": pa.array([[float("nan")] * DIM] * N, KIND),
    "null numbers": pa.array([[None] * DIM] * N, KIND),
    "text": pa.array(["text"] * N),
    "numbers": pa.array([1.5] * N),
}
RIGHT = pa.array([[1.0] * DIM] * N, KIND)
OTHERS = {
    **{f"vectors: {name}": {"id": IDS, "vector": vectors} for name, vectors in VECTORS.items()},
    "ids: numbers": {"id": pa.array(range(N)), "vector": RIGHT},
    "ids: null": {"id": pa.nulls(N, pa.string()), "vector": RIGHT},
    "no vectors": {"id": IDS},
    "no rows": {"id": IDS[:0], "vector": RIGHT[:0]},
}


@pytest.mark.parametrize("columns", OTHERS.values(), ids=OTHERS)
def test_a_file_of_another_kind_is_refused_with_what_to_do(stitcher, columns):
    table = pa.table(columns).replace_schema_metadata({STITCHER_KEY: b"v1"})
    pq.write_table(table, held_out_file(stitcher))
    with pytest.raises(InputError, match=r"cannot be read as held-out rows: .*\. Remove the file, or train again"):
        read_held_out(stitcher, "v1", DIM)


def test_a_torn_file_is_refused(stitcher):
    held_out_file(stitcher).write_bytes(b"PAR1")
    with pytest.raises(InputError, match="Remove the file, or train again"):
        read_held_out(stitcher, "v1", DIM)
