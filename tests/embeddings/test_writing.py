import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import job_of
from helpers.spaces import card, embeddings, gaussian
from pyarrow import feather

from repstitch.embeddings.parts import Job
from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write, write_layers, write_stream
from repstitch.errors import InputError
from repstitch.spaces import SPACE_KEY, Space

TESTS = Path(__file__).parents[1]
SLOW = pytest.mark.slow


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
        yield from job_of(rows).produce(start)
        out.write_bytes(b"someone else's")

    with pytest.raises(InputError, match=r"`out` .*x\.parquet exists and is never overwritten; pass another name"):
        write_stream(out, rows.space, replace(job_of(rows), produce=produce))
    assert out.read_bytes() == b"someone else's"
    out.unlink()
    assert write_stream(out, rows.space, job_of(rows, fail_at=0)) == 30  # no row is produced again
    np.testing.assert_array_equal(read(out).vectors, rows.vectors)


@pytest.mark.parametrize("place", ["part", "join", "lock", "settings"])
def test_a_full_disk_is_one_error_that_names_the_output_and_the_job_can_be_continued(tmp_path, monkeypatch, place):
    def full_disk(*args, **kwargs):
        if args and isinstance(args[0], pa.BufferOutputStream):  # in memory
            return parquet_writer(*args, **kwargs)
        raise OSError(28, "No space left on device")

    parquet_writer = pq.ParquetWriter
    rows, out = embeddings(30, 4), tmp_path / "x.parquet"
    places = {
        "part": (pa.ipc, "new_file"),
        "join": (pq, "ParquetWriter"),
        "lock": (Path, "open"),
        "settings": (Path, "write_text"),
    }
    owner, name = places[place]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full_disk)
        with pytest.raises(InputError, match=rf"^`out` {out} cannot be written: .*No space left on device$"):
            write_stream(out, rows.space, job_of(rows))
    assert [path.name for path in tmp_path.iterdir()] == (["x.parquet.partial"] if place == "join" else [])
    assert write_stream(out, rows.space, job_of(rows)) == 30


def test_a_file_system_without_locks_can_be_written_to(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    rows = embeddings(30, 4)
    assert write_stream(tmp_path / "x.parquet", rows.space, job_of(rows)) == 30


def test_an_error_in_the_source_of_the_rows_is_not_reported_as_a_write_error(tmp_path):
    def produce(start):
        (tmp_path / "none.txt").read_text()
        yield "hash", [], []

    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        write_stream(tmp_path / "x.parquet", card(), replace(job_of(embeddings(3, 4)), produce=produce))
    assert not list(tmp_path.iterdir())


def test_the_output_must_be_a_parquet_file_in_an_existing_folder(tmp_path):
    with pytest.raises(InputError, match=r"`out` must end in .parquet.*got 'x.npy'"):
        write(tmp_path / "x.npy", embeddings(30, 4))
    with pytest.raises(InputError, match=r"`out` must be in an existing folder; there is no .*none"):
        write(tmp_path / "none" / "x.parquet", embeddings(30, 4))


def test_a_job_without_rows_is_refused_and_writes_nothing(tmp_path):
    none = embeddings(0, 4)
    with pytest.raises(InputError, match=r"There are no rows to write to .*x.parquet"):
        write_stream(tmp_path / "x.parquet", card(), job_of(none))
    with pytest.raises(InputError, match=r"There are no rows to write to .*x.parquet"):
        write(tmp_path / "x.parquet", none)
    assert not list(tmp_path.iterdir())


def test_a_stream_is_written_completely_and_leaves_no_other_file(tmp_path):
    rows = embeddings(40, 4, dtype="float16")
    done = write_stream(
        tmp_path / "x.parquet", rows.space, job_of(rows, a=1), dtype="float16", metadata={"made.by": "test"}
    )
    assert done == 40
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    back = read(tmp_path / "x.parquet")
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert back.vectors.dtype == np.float16
    assert list(back.ids) == list(rows.ids)  # type: ignore[arg-type]
    metadata = pq.read_schema(tmp_path / "x.parquet").metadata
    assert metadata == {SPACE_KEY: rows.space.to_json().encode(), b"made.by": b"test"}


def test_ids_and_further_columns_are_written_in_their_types(tmp_path):
    rows = replace(embeddings(9, 4), ids=[str(i) for i in range(9)])
    job, scores = job_of(rows, 5), pa.schema([("score", pa.float32()), ("tag", pa.string())])

    def produce(start):
        for input_hash, ids, vectors in job.produce(start):
            yield input_hash, ids, vectors, [vectors[:, 0], pa.array(list(ids)).cast(pa.string())]

    write_stream(tmp_path / "x.parquet", card(), replace(job, produce=produce), id_type=pa.int64(), columns=scores)
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "vector", "score", "tag"]
    assert table["id"].to_pylist() == list(range(9))
    assert table["score"].to_pylist() == rows.vectors[:, 0].tolist()
    assert table["tag"].to_pylist() == list(rows.ids)  # type: ignore[arg-type]


# --- stopped jobs -----------------------------------------------------------------------------------------------------


def stopped(tmp_path, rows: Embeddings, size: int = 7, fail_at: int = 21, **settings) -> tuple[Path, Path]:
    """Stop the job at that row. Return its output, which does not exist, and its folder of parts."""
    out = tmp_path / "x.parquet"
    with pytest.raises(RuntimeError, match="the power went out"):
        write_stream(out, rows.space, job_of(rows, size, fail_at=fail_at, **settings))
    assert not out.exists()
    return out, tmp_path / "x.parquet.partial"


def starts_of(job: Job) -> tuple[Job, list[int]]:
    """Return the job, and a list of the rows that it is asked to start at, filled as they come."""
    starts: list[int] = []

    def produce(start: int):
        starts.append(start)
        return job.produce(start)

    return replace(job, produce=produce), starts


def assert_whole(out: Path, rows: Embeddings) -> None:
    """Check that a file has exactly these rows, and that nothing is beside it."""
    back = read(out)
    np.testing.assert_array_equal(back.vectors, rows.vectors)
    assert list(back.ids) == list(rows.ids)  # type: ignore[arg-type]
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_more_than_ten_parts_are_joined_in_order(tmp_path):
    rows = embeddings(40, 4)
    out, _ = stopped(tmp_path, rows, size=2, fail_at=24)
    assert write_stream(out, rows.space, job_of(rows, size=2)) == 40
    assert_whole(out, rows)


@pytest.mark.parametrize("fail_at", [0, 7, 21, 35])
def test_a_stopped_job_is_continued_to_an_identical_file(tmp_path, fail_at):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows, fail_at=fail_at, a=1)
    assert partial.exists() == (fail_at > 0)
    job, starts = starts_of(job_of(rows, a=1))
    assert write_stream(out, rows.space, job) == 40
    assert starts == [fail_at]
    whole = tmp_path / "straight.parquet"
    write_stream(whole, rows.space, job_of(rows, a=1))
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("then", [7, 3])
def test_a_job_may_continue_with_another_batch_size(tmp_path, then):
    rows = embeddings(40, 4)
    out, _ = stopped(tmp_path, rows)
    with pytest.raises(RuntimeError, match="power"):
        write_stream(out, rows.space, job_of(rows, then, fail_at=24))
    assert write_stream(out, rows.space, job_of(rows, 5)) == 40
    assert_whole(out, rows)


def overwrite(path: Path, at: int, content: bytes) -> None:
    before = path.read_bytes()
    path.write_bytes(before[:at] + content + before[at + len(content) :])
    assert path.read_bytes() != before


DAMAGE: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "not ours": lambda path: path.write_text("PAR1 half of it"),
    "some bytes": lambda path: overwrite(path, path.stat().st_size // 2 - 8, b"\xff" * 16),
    "one bit": lambda path: overwrite(path, 8, bytes([path.read_bytes()[8] ^ 1])),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "of another program": lambda path: feather.write_feather(pa.table({"id": ["a"]}), path),
}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_after_a_lost_or_damaged_part_are_made_again(tmp_path, caplog, damage, number):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows)
    DAMAGE[damage](partial / f"part-{number:06d}.arrow")
    job, starts = starts_of(job_of(rows))
    assert write_stream(out, rows.space, job) == 40
    assert starts == [7 * number]
    assert_whole(out, rows)
    if (damage, number) != ("lost", 2):  # the last part is not missed
        assert f"x.parquet.partial: the parts after the first {number} are incomplete" in caplog.text


def test_parts_of_an_older_version_without_a_checksum_are_continued(tmp_path):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows)
    for path in partial.glob("part-*"):
        path.write_bytes(path.read_bytes()[:-4])
    job, starts = starts_of(job_of(rows))
    assert write_stream(out, rows.space, job) == 40
    assert starts == [21]
    assert_whole(out, rows)


@pytest.mark.parametrize("damage", ["lost", "empty", "half"])
def test_a_job_without_its_settings_starts_again(tmp_path, caplog, damage):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows, a=1)
    DAMAGE[damage](partial / "job.json")
    job, starts = starts_of(job_of(rows, a=1))
    assert write_stream(out, rows.space, job) == 40
    assert starts == [0]
    assert_whole(out, rows)
    assert "the parts after the first 0 are incomplete" in caplog.text


def test_a_part_that_cannot_be_read_is_an_error_and_stays(tmp_path, monkeypatch):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows)

    def no_permission(path):
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(pa, "memory_map", no_permission)
        with pytest.raises(InputError, match=r"part-000000\.arrow cannot be read: .*Permission denied"):
            write_stream(out, rows.space, job_of(rows))
    assert len(list(partial.glob("part-*"))) == 3
    assert write_stream(out, rows.space, job_of(rows)) == 40


@pytest.mark.parametrize("name", ["thesis.docx", "photos", "part-00000.parquet", ".notes"])
@pytest.mark.parametrize("has_parts", [True, False])
def test_files_that_no_job_wrote_stay_in_the_folder_of_parts_and_are_refused(tmp_path, name, has_parts):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows) if has_parts else (tmp_path / "x.parquet", tmp_path / "x.parquet.partial")
    partial.mkdir(exist_ok=True)
    (partial / name).mkdir() if name == "photos" else (partial / name).write_text("mine")
    before = sorted(partial.iterdir())
    with pytest.raises(InputError, match=rf"x\.parquet\.partial must contain nothing but .* it contains '{name}'"):
        write_stream(out, rows.space, job_of(rows))
    assert sorted(partial.iterdir()) == before
    (partial / name).rename(tmp_path / name)
    assert write_stream(out, rows.space, job_of(rows)) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["x.parquet", name])


def test_what_killed_jobs_left_in_the_folder_of_parts_is_removed(tmp_path):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows)
    (partial / ".repstitch-0123456789ab.tmp").mkdir()
    (partial / "whole.tmp").write_bytes(b"PAR1 half of it")
    (partial / ".part-000003.1234abcd.tmp").mkdir()
    assert write_stream(out, rows.space, job_of(rows)) == 40
    assert_whole(out, rows)


def test_a_job_stopped_after_its_last_row_can_be_finished(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"

    def produce(start):
        yield from job_of(rows).produce(start)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(out, rows.space, replace(job_of(rows), produce=produce))
    assert (tmp_path / "x.parquet.partial").exists()
    assert write_stream(out, rows.space, job_of(rows)) == 40
    assert_whole(out, rows)


def test_parts_that_are_left_beside_the_whole_file_are_neither_read_nor_lost(tmp_path, monkeypatch):
    """A kill after the file has its name, and before the parts are removed, leaves both."""
    rows, out, partial = embeddings(40, 4), tmp_path / "x.parquet", tmp_path / "x.parquet.partial"

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("repstitch.embeddings.parts.remove_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            write_stream(out, rows.space, job_of(rows))
    whole, parts = out.read_bytes(), sorted(partial.iterdir())
    assert len([path for path in parts if path.name.startswith("part-")]) == 6
    np.testing.assert_array_equal(read(tmp_path).vectors, rows.vectors)
    with pytest.raises(InputError, match=r"x\.parquet exists and is never overwritten"):
        write_stream(out, rows.space, job_of(rows))
    assert (out.read_bytes(), sorted(partial.iterdir())) == (whole, parts)
    out.unlink()
    job, starts = starts_of(job_of(rows))
    assert write_stream(out, rows.space, job) == 40
    assert starts == [40]  # all parts are used again
    assert_whole(out, rows)


def test_the_unfinished_rows_of_another_job_are_refused(tmp_path):
    rows = embeddings(40, 4)
    out, partial = stopped(tmp_path, rows, a=1)
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    with pytest.raises(InputError, match="partial contains the unfinished rows of another job; remove it"):
        write_stream(out, rows.space, job_of(rows, a=2))
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before
    shutil.rmtree(partial)
    assert write_stream(out, rows.space, job_of(rows, a=2)) == 40


@pytest.mark.parametrize(("column", "row"), [("vectors", 0), ("vectors", 13), ("ids", 20)])
def test_rows_whose_input_has_changed_are_refused(tmp_path, column, row):
    rows = embeddings(40, 4)
    out, _ = stopped(tmp_path, rows)
    values = getattr(rows, column).copy()
    values[row] = values[row + 1]
    first = row // 7 * 7
    says = f"unfinished rows of another job; .* Rows {first} to {first + 6} of its input had other content"
    with pytest.raises(InputError, match=says):
        write_stream(out, rows.space, job_of(replace(rows, **{column: values})))
    with pytest.raises(InputError, match=r"Rows 7 to 13 of its input had other content\.$"):
        write_stream(out, rows.space, job_of(rows.take(slice(0, 10))))
    assert write_stream(out, rows.space, job_of(rows)) == 40


def test_input_that_changes_after_the_finished_parts_is_read_as_it_is_now(tmp_path):
    rows = embeddings(40, 4)
    out, _ = stopped(tmp_path, rows)
    more = embeddings(50, 4)
    more.vectors[:21] = rows.vectors[:21]
    assert write_stream(out, rows.space, job_of(more)) == 50
    assert_whole(out, more)


@pytest.mark.parametrize("stated", [39, 41])
def test_rows_in_another_number_than_the_job_states_are_not_published(tmp_path, stated):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"
    with pytest.raises(InputError, match=f"must have {stated} rows, but the input gave 40; it changed while it was"):
        write_stream(out, rows.space, job_of(rows, n_rows=stated))
    assert not out.exists()
    assert write_stream(out, rows.space, job_of(rows)) == 40


def test_a_part_that_is_lost_during_the_run_is_an_error_and_nothing_is_published(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"

    def produce(start):
        yield from job_of(rows).produce(start)
        (tmp_path / "x.parquet.partial" / "part-000002.arrow").unlink()

    with pytest.raises(InputError, match=r"`out` .*x\.parquet cannot be written: .*part-000002"):
        write_stream(out, rows.space, replace(job_of(rows), produce=produce))
    assert not out.exists()
    assert write_stream(out, rows.space, job_of(rows)) == 40
    assert_whole(out, rows)


def test_a_second_run_to_one_output_is_refused_while_the_first_writes(tmp_path):
    rows, out = embeddings(40, 4), tmp_path / "x.parquet"

    def produce(start):
        yield from job_of(rows).produce(start)
        with pytest.raises(InputError, match=r"Another run is writing to .*x\.parquet\.partial; wait for it"):
            write_stream(out, rows.space, job_of(rows))

    assert write_stream(out, rows.space, replace(job_of(rows), produce=produce)) == 40
    assert_whole(out, rows)


def test_layers_are_continued_and_appear_complete(tmp_path):
    rows, spaces = embeddings(40, 4), [card("a"), card("b")]
    with pytest.raises(RuntimeError, match="power"):
        write_layers(tmp_path / "out", spaces, job_of(rows, fail_at=21, n_layers=2))
    (tmp_path / "out.partial" / "part-000001.arrow").unlink()
    job, starts = starts_of(job_of(rows, n_layers=2))
    assert write_layers(tmp_path / "out", spaces, job) == 40
    assert starts == [7]
    for i, space in enumerate(spaces):
        back = read(tmp_path / "out" / f"{space.name}.parquet")
        np.testing.assert_array_equal(back.vectors, rows.vectors + i)
        assert (back.space, list(back.ids)) == (space, list(rows.ids))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_with_the_longest_name_is_written(tmp_path):
    rows = embeddings(40, 4)
    for out in (tmp_path / f"{'x' * 239}.parquet", tmp_path / f"{'x' * 247}.parquet"):
        write(out, rows)
        assert_whole(out, rows)
        out.unlink()
    out = tmp_path / f"{'x' * 239}.parquet"
    assert write_stream(out, rows.space, job_of(rows)) == 40
    assert_whole(out, rows)


@pytest.mark.parametrize("length", [248, 256])
def test_an_output_with_too_long_a_name_is_refused_in_one_line(tmp_path, length):
    rows, out = embeddings(40, 4), tmp_path / f"{'x' * (length - 8)}.parquet"
    with pytest.raises(InputError, match=r"^`out` .*too long"):
        write_stream(out, rows.space, job_of(rows))
    assert not list(tmp_path.iterdir())


# --- killed jobs ------------------------------------------------------------------------------------------------------

LEAST_KILLS = {"write": 12, "convert": 12, "stream": 60, "arrow": 60, "array": 60, "layers": 60}


@pytest.mark.parametrize("job", [pytest.param(job, marks=() if job == "write" else SLOW) for job in LEAST_KILLS])
def test_a_job_that_is_killed_anywhere_is_whole_or_can_be_continued(tmp_path, job):
    command = [sys.executable, "-m", "helpers.killing", str(tmp_path / "runs"), job]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = dict(part.split() for part in done.stdout.split(", "))
    assert set(counts) == {"killed", "empty", "half"}
    assert int(counts["killed"]) >= LEAST_KILLS[job]
