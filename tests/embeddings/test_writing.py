import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import card, embeddings, gaussian, names

from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import SPACE_KEY, Embeddings
from repstitch.embeddings.writing import write, write_stream
from repstitch.errors import InputError
from repstitch.spaces import Space


def test_a_written_file_is_plain_parquet_with_the_card_in_its_metadata(tmp_path):
    rows = embeddings(40, 4, dtype="float16")
    write(tmp_path / "x.parquet", rows)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("id").type == pa.string()
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 4)
    assert Space.from_json(table.schema.metadata[SPACE_KEY]) == rows.space
    assert table.column("id").to_pylist() == list(rows.ids)  # type: ignore[arg-type]


def test_rows_without_ids_are_written_with_their_positions_as_ids(tmp_path):
    write(tmp_path / "x.parquet", embeddings(25, 4, ids=None))
    assert list(read(tmp_path / "x.parquet").ids) == [str(i) for i in range(25)]  # type: ignore[arg-type]


def test_float64_vectors_are_written_and_read_as_float32(tmp_path):
    wide = gaussian(30, 4).astype("float64")
    write(tmp_path / "x.parquet", Embeddings(wide, card()))
    assert read(tmp_path / "x.parquet").vectors.dtype == np.float32
    for same in (wide, np.asfortranarray(wide), wide.astype(">f8")):
        np.testing.assert_array_equal(read(same).vectors, wide.astype("float32"))


def stream(rows: Embeddings, size: int = 7, fail_at: int | None = None):
    """Return `produce` for `write_stream`. It raises at the batch that starts at or after row `fail_at`."""

    def produce(start: int):
        for at in range(start, len(rows), size):
            if fail_at is not None and at >= fail_at:
                raise RuntimeError("the power went out")
            yield names(len(rows))[at : at + size], rows.vectors[at : at + size]

    return produce


def test_an_existing_file_is_never_overwritten(tmp_path):
    out = tmp_path / "x.parquet"
    write(out, embeddings(30, 4))
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists and is never overwritten; pass another name"):
        write(out, embeddings(30, 4, seed=1))
    assert out.read_bytes() == before


def test_a_file_that_appears_during_writing_is_not_overwritten_and_the_rows_are_kept(tmp_path):
    out = tmp_path / "x.parquet"
    rows = embeddings(30, 4)

    def produce(start):
        yield names(30), rows.vectors
        out.write_bytes(b"someone else's")

    with pytest.raises(InputError, match="was created in the meantime and is not overwritten; the rows are kept in"):
        write_stream(out, rows.space, produce, {})
    assert out.read_bytes() == b"someone else's"
    out.unlink()
    assert write_stream(out, rows.space, stream(rows), {}) == 30
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


@pytest.mark.parametrize("place", ["part", "join", "lock"])
def test_a_full_disk_is_one_error_that_names_the_output(tmp_path, monkeypatch, place):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner, name = {"part": (pq, "write_table"), "join": (pq, "ParquetWriter"), "lock": (Path, "open")}[place]
    monkeypatch.setattr(owner, name, full_disk)
    out = tmp_path / "x.parquet"
    with pytest.raises(InputError, match=rf"^`out` {out} cannot be written: .*No space left on device$"):
        write(out, embeddings(30, 4))
    assert not out.exists()


def test_an_error_in_the_source_of_the_rows_is_not_reported_as_a_write_error(tmp_path):
    def produce(start):
        (tmp_path / "none.txt").read_text()
        yield [], []

    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        write_stream(tmp_path / "x.parquet", card(), produce, {})


def test_the_output_must_be_a_parquet_file_in_an_existing_folder(tmp_path):
    with pytest.raises(InputError, match=r"`out` must end in .parquet.*got 'x.npy'"):
        write(tmp_path / "x.npy", embeddings(30, 4))
    with pytest.raises(InputError, match=r"`out` must be in an existing folder; there is no .*none"):
        write(tmp_path / "none" / "x.parquet", embeddings(30, 4))


def test_a_stream_without_rows_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(InputError, match=r"There are no rows to write to .*x.parquet"):
        write_stream(tmp_path / "x.parquet", card(), lambda start: iter([]), {})
    assert not list(tmp_path.iterdir())


def test_a_stream_is_written_completely_and_leaves_no_other_file(tmp_path):
    rows = embeddings(40, 4, dtype="float16")
    done = write_stream(
        tmp_path / "x.parquet", rows.space, stream(rows), {"a": 1}, dtype="float16", metadata={"made.by": "test"}
    )
    assert done == 40
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    back = read(tmp_path / "x.parquet")
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert back.vectors.dtype == np.float16
    assert list(back.ids) == list(rows.ids)  # type: ignore[arg-type]
    assert pq.read_schema(tmp_path / "x.parquet").metadata[b"made.by"] == b"test"


def test_more_than_ten_parts_are_joined_in_order(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="the power went out"):
        write_stream(out, rows.space, stream(rows, size=2, fail_at=24), {})
    assert write_stream(out, rows.space, stream(rows, size=2), {}) == 40
    back = read(out)
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert list(back.ids) == list(rows.ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("fail_at", [0, 7, 21, 35])
def test_an_interrupted_stream_is_resumed_to_an_identical_file(tmp_path, fail_at):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="the power went out"):
        write_stream(out, rows.space, stream(rows, fail_at=fail_at), {"a": 1})
    assert not out.exists()
    starts = []

    def produce(start):
        starts.append(start)
        return stream(rows)(start)

    assert write_stream(out, rows.space, produce, {"a": 1}) == 40
    assert starts == [fail_at]
    write_stream(tmp_path / "straight.parquet", rows.space, stream(rows), {"a": 1})
    assert out.read_bytes() == (tmp_path / "straight.parquet").read_bytes()


def test_a_half_written_part_is_written_again(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="power"):
        write_stream(out, rows.space, stream(rows, fail_at=21), {})
    for torn in ("part-000003.tmp", "whole.tmp"):
        (tmp_path / "x.parquet.partial" / torn).write_bytes(b"PAR1 half of it")
    assert write_stream(out, rows.space, stream(rows), {}) == 40
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


def test_a_job_stopped_after_its_last_row_can_be_finished(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    partial = tmp_path / "x.parquet.partial"

    def produce(start):
        yield from stream(rows)(start)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(out, rows.space, produce, {})
    assert partial.exists()
    assert write_stream(out, rows.space, stream(rows), {}) == 40
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


def test_the_unfinished_rows_of_another_job_are_refused(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="power"):
        write_stream(out, rows.space, stream(rows, fail_at=21), {"a": 1})
    with pytest.raises(InputError, match="partial contains the unfinished rows of another job; remove it"):
        write_stream(out, rows.space, stream(rows), {"a": 2})
    with pytest.raises(InputError, match="unfinished rows of another job"):
        write(out, rows)
    (tmp_path / "x.parquet.partial" / "job.json").unlink()
    with pytest.raises(InputError, match="unfinished rows of another job"):
        write_stream(out, rows.space, stream(rows), {"a": 1})
    shutil.rmtree(tmp_path / "x.parquet.partial")
    assert write_stream(out, rows.space, stream(rows), {"a": 2}) == 40
