import os
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.spaces import calibration, card, folder_of, gaussian, names
from pyarrow import feather

from repstitch.embeddings.plain_types import content
from repstitch.embeddings.reading import read, scan
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.evaluation.scorecard import Scorecard
from repstitch.spaces import Space
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows import translating
from repstitch.workflows.converting import convert
from repstitch.workflows.translating import translate_file

D_SOURCE = 6


def rows_of(n: int = 50, seed: int = 3, **changes) -> Embeddings:
    fields: dict[str, Any] = {
        "vectors": gaussian(n, D_SOURCE, seed),
        "space": card("old", D_SOURCE),
        "ids": names(n, "new"),
    }
    return Embeddings(**(fields | changes))


def saved(path: Path, rows: Embeddings) -> Path:
    write(path, rows)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch_rows", [7, 50, 16_384])
def test_a_translated_file_contains_the_translations_in_order(tmp_path, stitcher, dtype, batch_rows):
    rows = rows_of()
    n = translate_file(
        stitcher, saved(tmp_path / "x.parquet", rows), tmp_path / "y.parquet", dtype=dtype, batch_rows=batch_rows
    )
    written = read(tmp_path / "y.parquet")
    assert n == 50
    assert written.vectors.dtype == np.dtype(dtype)
    np.testing.assert_allclose(
        written.vectors, stitcher.translate(rows.vectors).astype(dtype), atol=1e-6 if dtype == "float32" else 1e-3
    )
    assert list(written.ids) == list(rows.ids)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "y.parquet"]


def test_a_translated_file_reads_back_as_rows_of_the_target_space(tmp_path, stitcher):
    translate_file(stitcher, saved(tmp_path / "x.parquet", rows_of()), tmp_path / "y.parquet")
    written = read(tmp_path / "y.parquet")
    assert written.space == stitcher.target
    assert written.declared
    assert pq.read_schema(tmp_path / "y.parquet").metadata[b"repstitch.translated_by"] == stitcher.version.encode()
    with pytest.raises(InputError, match="look like rows of 'new', the other side"):
        translate_file(stitcher, tmp_path / "y.parquet", tmp_path / "z.parquet")


def test_every_kind_of_file_is_translated_alike(tmp_path, stitcher):
    rows = rows_of(40)
    expected = stitcher.translate(rows.vectors)
    np.save(tmp_path / "x.npy", rows.vectors)
    np.savez(tmp_path / "x.npz", rows=rows.vectors)
    folder_of(tmp_path / "folder", [rows.take(np.arange(0, 15)), rows.take(np.arange(15, 40))])
    saved(tmp_path / "x.parquet", rows)
    for name in ("x.npy", "x.npz:rows", "folder", "x.parquet"):
        out = tmp_path / f"{name.replace(':', '-')}.out.parquet"
        assert translate_file(stitcher, tmp_path / name, out, batch_rows=9) == 40
        np.testing.assert_allclose(read(out).vectors, expected, atol=1e-6)


def test_rows_without_ids_get_their_position_or_the_ids_that_are_passed(tmp_path, stitcher):
    np.save(tmp_path / "x.npy", rows_of(12).vectors)
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet", batch_rows=5)
    (tmp_path / "names.txt").write_text("\n".join(names(12, "doc")))
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.parquet", batch_rows=5, ids=tmp_path / "names.txt")
    assert list(read(tmp_path / "y.parquet").ids) == [str(i) for i in range(12)]  # type: ignore[arg-type]
    assert list(read(tmp_path / "z.parquet").ids) == list(names(12, "doc"))  # type: ignore[arg-type]


def test_numbers_of_rows_are_not_written_beside_an_array(tmp_path, stitcher):
    """They would be taken for ids, also of another array that is called like it."""
    np.save(tmp_path / "x.npy", rows_of(12).vectors)
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.npy", batch_rows=5)
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.npy", batch_rows=5, ids=names(12))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy", "z.ids.txt", "z.npy"]
    assert read(tmp_path / "y.npy").ids is None
    assert list(read(tmp_path / "z.npy").ids) == list(names(12))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.load(tmp_path / "z.npy"))


def test_rows_are_translated_one_batch_at_a_time(tmp_path, stitcher, monkeypatch):
    sizes = []
    whole = Stitcher.translate

    def watch(self, X):
        sizes.append(len(X))
        return whole(self, X)

    monkeypatch.setattr(Stitcher, "translate", watch)
    np.save(tmp_path / "x.npy", rows_of(50).vectors)
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet", batch_rows=20)
    assert sizes == [20, 20, 10]


def interrupt_at(batch: int, monkeypatch) -> list[int]:
    """Raise KeyboardInterrupt in the translation of that batch. Return the list of batch sizes, filled as they come."""
    sizes: list[int] = []
    whole = Stitcher.translate

    def stopping(self, X):
        sizes.append(len(X))
        if len(sizes) == batch:
            raise KeyboardInterrupt
        return whole(self, X)

    monkeypatch.setattr(Stitcher, "translate", stopping)
    return sizes


@pytest.mark.parametrize("kind", ["x.npy", "x.parquet"])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("then", [10, 7, 100])
def test_an_interrupted_translation_resumes_and_gives_the_same_file(tmp_path, stitcher, monkeypatch, kind, batch, then):
    rows = rows_of(35)
    np.save(tmp_path / "x.npy", rows.vectors)
    saved(tmp_path / "x.parquet", rows)
    with monkeypatch.context() as patch:
        interrupt_at(batch, patch)
        with pytest.raises(KeyboardInterrupt):
            translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=10)
    assert not (tmp_path / "y.parquet").exists()
    sizes = interrupt_at(0, monkeypatch)
    assert translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=then) == 35
    assert sum(sizes) == 35 - 10 * (batch - 1)  # finished batches are not translated again
    translate_file(stitcher, tmp_path / kind, tmp_path / "whole.parquet", batch_rows=10)
    resumed, whole = pq.read_table(tmp_path / "y.parquet"), pq.read_table(tmp_path / "whole.parquet")
    assert resumed.column("id") == whole.column("id")
    vectors = [read(tmp_path / name).vectors for name in ("y.parquet", "whole.parquet")]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert resumed.schema.metadata == whole.schema.metadata
    assert not list(tmp_path.glob("*.partial"))


def test_an_interrupted_translation_with_equal_batches_gives_the_same_bytes(tmp_path, stitcher, monkeypatch):
    path = saved(tmp_path / "x.parquet", rows_of(35))
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            translate_file(stitcher, path, tmp_path / "y.parquet", batch_rows=10)
    for name in ("y.parquet", "whole.parquet"):
        translate_file(stitcher, path, tmp_path / name, batch_rows=10)
    assert (tmp_path / "y.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def stopped(stitcher, path, out: Path, monkeypatch, **options) -> None:
    """Stop the translation after its first batch of 10 rows."""
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            translate_file(stitcher, path, out, batch_rows=10, **options)


@pytest.mark.parametrize("change", ["another stitcher", "another dtype"])
def test_unfinished_rows_of_another_job_are_not_resumed(tmp_path, stitcher, monkeypatch, change):
    np.save(tmp_path / "x.npy", rows_of(30).vectors)
    out, partial = tmp_path / "y.parquet", tmp_path / "y.parquet.partial"
    stopped(stitcher, tmp_path / "x.npy", out, monkeypatch)
    before = {p.name: p.read_bytes() for p in partial.iterdir()}
    other = replace(stitcher, output_norm="none") if change == "another stitcher" else stitcher
    dtype = "float16" if change == "another dtype" else "float32"
    with pytest.raises(InputError, match="contains the unfinished rows of another job; remove it, or finish"):
        translate_file(other, tmp_path / "x.npy", out, batch_rows=10, dtype=dtype)
    assert {p.name: p.read_bytes() for p in partial.iterdir()} == before


def put_ids(folder: Path, form: str, ids: np.ndarray) -> Any:
    """Store ids in one of the forms that `ids` accepts, and return the argument."""
    if form == "array":
        return ids
    if form == "text":
        (folder / "ids.txt").write_text("\n".join(ids))
        return folder / "ids.txt"
    if form == "npy":
        np.save(folder / "ids.npy", ids.astype(str))
        return folder / "ids.npy"
    np.savez(folder / "ids.npz", key=ids.astype(str), other=ids.astype(str))
    return f"{folder / 'ids.npz'}:key"


@pytest.mark.parametrize("form", ["array", "text", "npy", "npz:KEY"])
def test_ids_that_change_between_stop_and_resume_are_refused_in_every_form(tmp_path, stitcher, monkeypatch, form):
    np.save(tmp_path / "x.npy", rows_of(30).vectors)
    out, ids = tmp_path / "y.parquet", names(30, "doc")
    stopped(stitcher, tmp_path / "x.npy", out, monkeypatch, ids=put_ids(tmp_path, form, ids))
    changed = ids.copy()
    changed[3] = "DOC3"
    with pytest.raises(InputError, match=r"Rows 0 to 9 of its input had other content"):
        translate_file(stitcher, tmp_path / "x.npy", out, batch_rows=10, ids=put_ids(tmp_path, form, changed))
    with pytest.raises(InputError, match=r"Rows 0 to 9 of its input had other content"):
        translate_file(stitcher, tmp_path / "x.npy", out, batch_rows=10)
    for same in ("array", "text", "npy", "npz:KEY"):  # the content counts, not its form
        translate_file(stitcher, tmp_path / "x.npy", out, batch_rows=10, ids=put_ids(tmp_path, same, ids))
        assert list(read(out).ids) == list(ids)  # type: ignore[arg-type]
        out.unlink()


@pytest.mark.parametrize("separator", ["\n", "\0", "\t"])
def test_ids_that_are_equal_only_when_joined_are_not_resumed(tmp_path, stitcher, monkeypatch, separator):
    np.save(tmp_path / "x.npy", rows_of(30).vectors)
    out, ids, other = tmp_path / "y.parquet", names(30, "doc"), names(30, "doc")
    ids[:2] = [f"a{separator}b", "c"]
    other[:2] = ["a", f"b{separator}c"]
    stopped(stitcher, tmp_path / "x.npy", out, monkeypatch, ids=ids)
    with pytest.raises(InputError, match=r"Rows 0 to 9 of its input had other content"):
        translate_file(stitcher, tmp_path / "x.npy", out, batch_rows=10, ids=other)
    translate_file(stitcher, tmp_path / "x.npy", out, batch_rows=10, ids=ids)
    assert list(read(out).ids) == list(ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["x.npy", "x.npz", "x.parquet", "x.arrow", "folder"])
def test_a_source_replaced_at_the_same_size_and_time_is_noticed(tmp_path, stitcher, monkeypatch, kind):
    def put(rows: Embeddings) -> None:
        path = tmp_path / kind
        if kind == "x.npy":
            np.save(path, rows.vectors)
        elif kind == "x.npz":
            np.savez(path, vectors=rows.vectors)
        elif kind == "x.arrow":
            saved(tmp_path / "t.parquet", rows)
            feather.write_feather(pq.read_table(tmp_path / "t.parquet"), path, compression="uncompressed")
            (tmp_path / "t.parquet").unlink()
        else:
            (path / "0.parquet" if kind == "folder" else path).unlink(missing_ok=True)
            path.mkdir(exist_ok=True) if kind == "folder" else None
            saved(path / "0.parquet" if kind == "folder" else path, rows)
        for file in (path, *path.glob("*")):
            os.utime(file, ns=(10**18, 10**18))

    rows, other = rows_of(30), rows_of(30, seed=9)
    other.vectors[10:] = rows.vectors[10:]
    put(rows)
    stopped(stitcher, tmp_path / kind, tmp_path / "y.parquet", monkeypatch)
    put(other)
    with pytest.raises(InputError, match=r"unfinished rows of another job; .* Rows 0 to 9 of its input had other"):
        translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=10)
    put(rows)
    assert translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=10) == 30
    np.testing.assert_allclose(read(tmp_path / "y.parquet").vectors, stitcher.translate(rows.vectors), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (7, 3), (90_000, 5)])  # the last has whole pieces and a rest
def test_the_hash_of_rows_changes_with_every_bit_and_with_their_order(n, d, dtype):
    rows = Embeddings(gaussian(n, d).astype(dtype), card("old", d), names(n))
    flips = {
        (byte, bit) for byte in np.random.default_rng(0).integers(0, rows.vectors.nbytes, 40).tolist() for bit in (0, 7)
    }
    seen = {translating._input_hash(rows)}
    for byte, bit in flips:
        changed = rows.vectors.copy()
        changed.reshape(-1).view(np.uint8)[byte] ^= 1 << bit
        seen.add(translating._input_hash(replace(rows, vectors=changed)))
    assert len(seen) == 1 + len(flips)
    if n > 1:
        swapped = np.r_[1, 0, 2:n]
        assert translating._input_hash(replace(rows, vectors=rows.vectors[swapped])) not in seen
        assert translating._input_hash(replace(rows, ids=rows.ids[swapped])) not in seen  # type: ignore[index]
        fortran = replace(rows, vectors=np.asfortranarray(rows.vectors))
        assert translating._input_hash(fortran) in seen


def test_the_hash_of_rows_stays_the_same_in_later_versions():
    vectors = (np.arange(9_000, dtype=np.float32) / 7).reshape(1_000, 9)
    assert translating._input_hash(Embeddings(vectors, card("old", 9), names(1_000)))[:16] == "bfbe1486e22ee596"


def payloads() -> dict[str, pa.Array]:
    """Return columns of several types, with a value that lacks in each."""
    texts, times = pa.array(["a", None, "c"] * 20), pa.array([7, None, 9] * 20, pa.timestamp("ns", "UTC"))
    return {
        "texts": texts,
        "views": texts.cast(pa.string_view()),
        "categories": texts.dictionary_encode(),
        "numbers": pa.array([1, None, 3] * 20, pa.int16()),
        "times": times,
        "lists": pa.array([["a"], None, []] * 20),
        "of categories": pa.array([["a"], None, ["b", "a"]] * 20, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "fields": pa.array(
            [{"k": 1, "t": 7}, None, {"k": None, "t": None}] * 20, pa.struct({"k": pa.int8(), "t": times.type})
        ),
        "maps": pa.array([[("k", 1)], None, []] * 20, pa.map_(pa.string(), pa.int8())),
        "fixed": pa.array([[1.0, 2.0], None, [3.0, None]] * 20, pa.list_(pa.float32(), 2)),
        "without fields": pa.array([{}, None, {}] * 20, pa.struct([])),
    }


@pytest.mark.parametrize("kind", payloads())
def test_further_columns_are_recognised_by_their_values_however_they_are_read(kind):
    column = payloads()[kind]
    table = pa.table({"p": column})
    contents = {content(table.slice(20, 15)).to_pybytes()}
    again = [pa.concat_tables([pa.table({"p": column[at : at + 7]}) for at in range(0, 60, 7)])]
    again += [pa.table({"p": pa.concat_arrays([column[20:23], column[23:60]])}).slice(0, 15)]
    contents |= {content(again[0].slice(20, 15)).to_pybytes(), content(again[1]).to_pybytes()}
    assert len(contents) == 1
    others = {content(table.slice(at, 15)).to_pybytes() for at in (19, 21)}
    assert len(contents | others) == 3


def test_a_further_column_that_changes_between_stop_and_resume_is_noticed(tmp_path, stitcher, monkeypatch):
    rows, path = rows_of(30), tmp_path / "x.parquet"
    columns = {name: column[:30] for name, column in payloads().items() if name in ("categories", "times", "fields")}

    def put(**changed: pa.Array) -> None:
        path.unlink(missing_ok=True)
        saved(path, replace(rows, payload=pa.table(columns | changed)))

    for name, column in columns.items():
        put()
        stopped(stitcher, path, tmp_path / f"{name}.parquet", monkeypatch, columns="all")
        put(**{name: pa.concat_arrays([column[:9], column[10:], column[:1]])})
        with pytest.raises(InputError, match=r"unfinished rows of another job; .* Rows 0 to 9 of its input had other"):
            translate_file(stitcher, path, tmp_path / f"{name}.parquet", batch_rows=10, columns="all")
        put()
        assert translate_file(stitcher, path, tmp_path / f"{name}.parquet", batch_rows=10, columns="all") == 30


def test_a_source_that_was_moved_or_copied_is_still_the_same(tmp_path, stitcher, monkeypatch):
    path = saved(tmp_path / "x.parquet", rows_of(30))
    stopped(stitcher, path, tmp_path / "y.parquet", monkeypatch)
    moved = path.rename(tmp_path / "moved.parquet")
    os.utime(moved, ns=(10**18, 10**18))
    sizes = interrupt_at(0, monkeypatch)
    assert translate_file(stitcher, moved, tmp_path / "y.parquet", batch_rows=10) == 30
    assert sizes == [10, 10]


@pytest.mark.parametrize("kind", ["x.npy", "x.parquet"])
def test_a_source_that_is_cut_or_grows_between_stop_and_resume_is_read_as_it_is_now(
    tmp_path, stitcher, monkeypatch, kind
):
    def put(rows: Embeddings) -> None:
        (tmp_path / kind).unlink(missing_ok=True)
        np.save(tmp_path / kind, rows.vectors) if kind == "x.npy" else saved(tmp_path / kind, rows)

    rows = rows_of(40)
    put(rows.take(slice(0, 30)))
    stopped(stitcher, tmp_path / kind, tmp_path / "y.parquet", monkeypatch)
    put(rows.take(slice(0, 9)))
    with pytest.raises(InputError, match="Rows 0 to 9 of its input had other content"):
        translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=10)
    put(rows)
    assert translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=10) == 40
    np.testing.assert_allclose(read(tmp_path / "y.parquet").vectors, stitcher.translate(rows.vectors), atol=1e-6)


@pytest.mark.parametrize("confidence", [False, True])
def test_rows_of_a_large_batch_are_translated_a_few_at_a_time_with_the_same_result(
    tmp_path, stitcher, monkeypatch, confidence
):
    sure, rows = replace(stitcher, calibration=calibration(D_SOURCE)), rows_of(50)
    path = saved(tmp_path / "x.parquet", rows)
    translate_file(sure, path, tmp_path / "y.parquet", confidence=confidence)
    monkeypatch.setattr(translating, "CHUNK_BYTES", 7 * 4 * D_SOURCE)
    translate_file(sure, path, tmp_path / "z.parquet", confidence=confidence)
    tables = [pq.read_table(tmp_path / name) for name in ("y.parquet", "z.parquet")]
    assert tables[0].column_names == tables[1].column_names
    vectors = [read(tmp_path / name).vectors for name in ("y.parquet", "z.parquet")]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    for name in tables[0].column_names[2:]:
        values = [table[name].to_numpy() for table in tables]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_an_existing_output_is_refused_and_unchanged(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    (tmp_path / "y.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"`out` .*y\.parquet exists and is never overwritten"):
        translate_file(stitcher, path, tmp_path / "y.parquet")
    assert (tmp_path / "y.parquet").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "y.parquet"]


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("y.npz", r"`out` must end in \.parquet, \.arrow or \.npy; got 'y\.npz'"),
        ("no/y.parquet", "in an existing folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, stitcher, out, says):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match=says):
        translate_file(stitcher, path, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("batch_rows", [10, 100])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN or Inf"), (-np.inf, "NaN or Inf"), (0, "all zeros")])
@pytest.mark.parametrize("kind", ["x.npy", "x.parquet"])
def test_an_invalid_row_is_named_and_the_rows_before_it_are_kept(
    tmp_path, stitcher, monkeypatch, kind, value, what, batch_rows
):
    def put(vectors: np.ndarray) -> None:
        if kind == "x.npy":
            np.save(tmp_path / kind, vectors)
        else:
            (tmp_path / kind).unlink(missing_ok=True)
            saved(tmp_path / kind, rows_of(len(vectors), vectors=vectors))

    vectors = gaussian(30, D_SOURCE, 3)
    vectors[23] = value
    name = "row 23" if kind == "x.npy" else "id 'new23'"
    put(vectors)
    with pytest.raises(InputError, match=f"contains rows that cannot be translated: {name} is {what}"):
        translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=batch_rows)
    finished = 20 if batch_rows == 10 else 0
    assert {p.name for p in tmp_path.iterdir()} == {kind, *(["y.parquet.partial"] if finished else [])}
    put(np.delete(vectors, 23, axis=0))
    sizes = interrupt_at(0, monkeypatch)
    assert translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=batch_rows) == 29
    assert sum(sizes) == 29 - finished
    assert {p.name for p in tmp_path.iterdir()} == {kind, "y.parquet"}


def test_values_too_large_for_float16_are_refused_and_no_file_is_left(tmp_path, stitcher):
    map = AffineMap(stitcher.map.weight * 1e6, stitcher.map.bias)
    large = replace(stitcher, map=map, output_norm="none")
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`dtype` float16 cannot represent the translation of id 'new0'; use float32"):
        translate_file(large, path, tmp_path / "y.parquet", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    translate_file(large, path, tmp_path / "y.parquet")
    assert np.isfinite(read(tmp_path / "y.parquet").vectors).all()


def test_an_unsupported_dtype_is_refused(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`dtype` must be float32 or float16; got 'float64'"):
        translate_file(stitcher, path, tmp_path / "y.parquet", dtype="float64")  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (card("old", D_SOURCE, revision="def"), r"card states another identity \(revision 'def' against 'abc'\)"),
        (card("old", D_SOURCE, pooling="mean"), r"card states another identity \(pooling 'mean' against 'cls'\)"),
        (card("other", D_SOURCE), r"card states another identity \(encoder 'timm:other' against 'timm:old'\)"),
        (Space("other", D_SOURCE), r"card states another identity \(name 'other' against 'old'\)"),
    ],
)
def test_rows_of_another_space_are_refused_though_the_dimensions_agree(tmp_path, stitcher, space, says):
    path = saved(tmp_path / "x.parquet", rows_of(space=space))
    with pytest.raises(InputError, match=says):
        translate_file(stitcher, path, tmp_path / "y.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_rows_of_another_dimension_are_refused(tmp_path, stitcher):
    np.save(tmp_path / "x.npy", gaussian(30, 9))
    with pytest.raises(InputError, match="must have 6 dimensions, like space 'old'; got 9"):
        translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet")


def one_way(d_target: int) -> Stitcher:
    return Stitcher(
        map=AffineMap(torch.eye(4, d_target), torch.zeros(d_target)),
        source=Space("old", 4),
        target=Space("new", d_target),
        method="ridge",
        objective="match",
        input_norm="unit",
        output_norm="unit",
        source_mean=np.zeros(4, np.float32),
        target_mean=np.zeros(d_target, np.float32),
        seen=np.arange(2),
    )


@pytest.mark.parametrize(("way", "d_target"), [("card", 4), ("name", 4), ("dimension", 3)])
def test_rows_of_the_target_space_are_recognised_and_refused(tmp_path, way, d_target):
    vectors = gaussian(9, d_target)
    if way == "card":
        path = saved(tmp_path / "x.parquet", Embeddings(vectors, Space("new", 4), names(9)))
    else:
        path = tmp_path / ("new.npy" if way == "name" else "x.npy")
        np.save(path, vectors)
    with pytest.raises(InputError, match="look like rows of 'new', the other side of the stitcher, which"):
        translate_file(one_way(d_target), path, tmp_path / "y.parquet")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_without_a_card_is_assumed_to_be_in_the_source_space_with_a_warning(tmp_path, stitcher, caplog):
    np.save(tmp_path / "x.npy", gaussian(9, D_SOURCE))
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet")
    assert "has no space card; assuming space old because the dimension matches" in caplog.text
    caplog.clear()
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.parquet", source_space=card("old", D_SOURCE))
    assert caplog.text == ""


def test_unusable_confidence_is_written_with_a_warning(tmp_path, stitcher, caplog):
    path = saved(tmp_path / "x.parquet", rows_of())
    columns = []
    for usable in (True, False):
        scores = {"confidence": {"usable": usable, "reason": "it was tested on 3 hits"}}
        sure = replace(stitcher, calibration=calibration(D_SOURCE, pool=500), scorecard=Scorecard(scores))
        caplog.clear()
        translate_file(sure, path, tmp_path / f"{usable}.parquet", confidence=True)
        warning = "The column of p_match is not usable: it was tested on 3 hits. It is written anyway."
        assert [record.message for record in caplog.records] == ([] if usable else [warning])
        columns.append(pq.read_table(tmp_path / f"{usable}.parquet").columns)
    assert columns[0] == columns[1]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_confidence_is_a_float32_column_for_each_measure(tmp_path, stitcher, dtype):
    sure, rows = replace(stitcher, calibration=calibration(D_SOURCE, pool=500)), rows_of()
    path = saved(tmp_path / "x.parquet", rows)
    translate_file(sure, path, tmp_path / "y.parquet", batch_rows=20, dtype=dtype, confidence=True)
    table = pq.read_table(tmp_path / "y.parquet")
    measures = ["p_match@500", "cosine_lower", "p_typical", "shared", "distance"]
    assert table.column_names == ["id", "vector", *measures]
    for name, values in sure.confidence(rows.vectors).to_dict().items():
        assert str(table.schema.field(name).type) == "float"
        np.testing.assert_allclose(table[name].to_numpy(), values, rtol=1e-3)
    written = read(tmp_path / "y.parquet")
    assert written.space == sure.target
    np.testing.assert_allclose(written.vectors, sure.translate(rows.vectors), atol=1e-6 if dtype == "float32" else 1e-3)
    assert list(written.ids) == list(rows.ids)  # type: ignore[arg-type]


def test_without_confidence_no_column_is_added(tmp_path, stitcher):
    sure = replace(stitcher, calibration=calibration(D_SOURCE))
    translate_file(sure, saved(tmp_path / "x.parquet", rows_of()), tmp_path / "y.parquet")
    assert pq.read_table(tmp_path / "y.parquet").column_names == ["id", "vector"]


def test_an_interrupted_translation_with_confidence_resumes_only_with_confidence(tmp_path, stitcher, monkeypatch):
    sure = replace(stitcher, calibration=calibration(D_SOURCE))
    path, whole, calls = saved(tmp_path / "x.parquet", rows_of(35)), Stitcher.translate_with_confidence, []

    def stopping(self, X):
        calls.append(len(X))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, X)

    with monkeypatch.context() as patch:
        patch.setattr(Stitcher, "translate_with_confidence", stopping)
        with pytest.raises(KeyboardInterrupt):
            translate_file(sure, path, tmp_path / "y.parquet", batch_rows=10, confidence=True)
    with pytest.raises(InputError, match="contains the unfinished rows of another job"):
        translate_file(sure, path, tmp_path / "y.parquet", batch_rows=10)
    assert translate_file(sure, path, tmp_path / "y.parquet", batch_rows=10, confidence=True) == 35
    written = pq.read_table(tmp_path / "y.parquet")["p_typical"].to_numpy()
    np.testing.assert_allclose(written, sure.confidence(rows_of(35).vectors).p_typical, rtol=1e-3)


def test_confidence_of_a_stitcher_without_calibration_is_refused(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`confidence` requires a stitcher with a calibration; this one has none"):
        translate_file(replace(stitcher, calibration=None), path, tmp_path / "y.parquet", confidence=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


# --- ids and further columns ------------------------------------------------------------------------------------------


def table_of(**columns) -> pa.Table:
    rows = rows_of(40)
    return pa.table({**columns, "vector": pa.array(list(rows.vectors))})


ID_COLUMNS = {
    "int64": pa.array(range(7, 47)),
    "uint64": pa.array(range(2**63, 2**63 + 40), pa.uint64()),
    "int32": pa.array(range(40), pa.int32()),
    "string": pa.array(names(40), pa.string()),
    "large_string": pa.array(names(40), pa.large_string()),
    "double": pa.array([i / 8 for i in range(40)]),
    "binary": pa.array([f"b{i}".encode() for i in range(40)]),
    "date32": pa.array(range(40), pa.date32()),
    "timestamp": pa.array(range(40), pa.timestamp("us")),
    "decimal": pa.array(range(40), pa.decimal128(10, 2)),
    "categories": pa.array(names(40), pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", ID_COLUMNS)
@pytest.mark.parametrize("name", ["id", "doc_id", "sku"])
def test_ids_keep_their_type_and_their_order(tmp_path, stitcher, kind, name):
    pq.write_table(table_of(**{name: ID_COLUMNS[kind]}), tmp_path / "x.parquet")
    id_column = "sku" if name == "sku" else None
    translate_file(stitcher, tmp_path / "x.parquet", tmp_path / "y.parquet", id_column=id_column, batch_rows=7)
    written = pq.read_table(tmp_path / "y.parquet")
    assert written.column("id").combine_chunks().equals(ID_COLUMNS[kind])
    source = read(tmp_path / "x.parquet", id_column=id_column)
    np.testing.assert_array_equal(read(tmp_path / "y.parquet").ids, source.ids)  # type: ignore[arg-type]


def test_uuids_are_written_as_text(tmp_path, stitcher):
    keys = [uuid.UUID(int=2**120 + i) for i in range(40)]
    pq.write_table(table_of(id=pa.array([key.bytes for key in keys], pa.uuid())), tmp_path / "x.parquet")
    translate_file(stitcher, tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert pq.read_table(tmp_path / "y.parquet")["id"].to_pylist() == [str(key) for key in keys]


@pytest.mark.parametrize("columns", [("lang", "title"), "all", ()])
def test_further_columns_are_copied_and_the_log_names_the_others(tmp_path, stitcher, columns, caplog):
    caplog.set_level("INFO")
    payload = {"title": names(40, "a title ").tolist(), "lang": ["en", None] * 20, "tags": [["a", "b"], []] * 20}
    table = table_of(doc_id=names(40), **payload)
    pq.write_table(table, tmp_path / "x.parquet")
    translate_file(stitcher, tmp_path / "x.parquet", tmp_path / "y.parquet", columns=columns, batch_rows=7)
    written = pq.read_table(tmp_path / "y.parquet")
    copied = list(payload) if columns == "all" else list(columns)
    assert written.column_names == ["id", "vector", *copied]
    for name in copied:
        assert written.schema.field(name).type == table.schema.field(name).type
        assert written[name].to_pylist() == payload[name]
    left_out = [name for name in payload if name not in copied]
    assert caplog.text.count("not copied: ") == bool(left_out)
    if left_out:
        assert f"x.parquet: not copied: {', '.join(left_out)}. Copy columns with `columns`." in caplog.text


def test_columns_that_the_output_cannot_contain_are_refused_before_any_row_is_translated(
    tmp_path, stitcher, monkeypatch
):
    payload = pa.table({"p": pa.array([{}] * 12, pa.struct([]))})
    path = tmp_path / "x.arrow"
    table = pa.table({"vector": list(rows_of(12).vectors), "p": payload["p"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    monkeypatch.setattr(translating, "_translate", pytest.fail)
    with pytest.raises(InputError, match=r"`out` y\.parquet cannot contain all of the columns: .* or use \.arrow\."):
        translate_file(stitcher, path, tmp_path / "y.parquet", columns="all", source_space="old")
    assert [file.name for file in tmp_path.iterdir()] == ["x.arrow"]


def test_an_id_with_a_line_break_is_refused_beside_an_array_at_its_batch(tmp_path, stitcher):
    ids = np.array([*names(9), "a\nb", *names(20, "more")], object)
    path = saved(tmp_path / "x.parquet", rows_of(30, ids=ids))
    with pytest.raises(InputError, match=r"because the id 'a\\nb' has a line break; use \.parquet\.$"):
        translate_file(stitcher, path, tmp_path / "y.npy", batch_rows=10)
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]  # nothing was translated


def test_ids_that_another_wrote_beside_the_array_meanwhile_are_kept(tmp_path, stitcher, monkeypatch):
    path, out = saved(tmp_path / "x.parquet", rows_of(30)), tmp_path / "y.npy"
    stopped(stitcher, path, out, monkeypatch)
    (tmp_path / "y.ids.txt").write_text("my only copy")
    with pytest.raises(InputError, match=r"`out` .*y\.ids\.txt exists and is never overwritten"):
        translate_file(stitcher, path, out, batch_rows=10)
    assert (tmp_path / "y.ids.txt").read_text() == "my only copy"
    (tmp_path / "y.ids.txt").unlink()
    assert translate_file(stitcher, path, out, batch_rows=10) == 30


def test_columns_that_cannot_be_copied_are_refused(tmp_path, stitcher):
    pq.write_table(table_of(doc_id=names(40), title=names(40)).append_column("id", [names(40)]), tmp_path / "x.parquet")
    for changes, message in (
        (
            {"columns": ("title", "name")},
            r"`columns` must be all, or some of the columns of .*\(doc_id, title\); got name",
        ),
        ({"columns": ("id",), "id_column": "doc_id"}, r"`columns` must not name id, which the output has already"),
        ({"columns": ("vector",)}, r"`columns` must be all, or some of the columns of .*; got vector"),
    ):
        with pytest.raises(InputError, match=message):
            translate_file(stitcher, tmp_path / "x.parquet", tmp_path / "y.parquet", **changes)  # type: ignore[arg-type]
    translate_file(stitcher, tmp_path / "x.parquet", tmp_path / "y.parquet", columns="all", id_column="doc_id")
    assert pq.read_schema(tmp_path / "y.parquet").names == ["id", "vector", "title"]
    np.save(tmp_path / "x.npy", rows_of(40).vectors)
    with pytest.raises(InputError, match=r"`columns` must be columns of a Parquet or Arrow file; .*x\.npy has none"):
        translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.parquet", columns="all")


@pytest.mark.parametrize("out", ["y.parquet", "y.arrow"])
def test_shards_with_different_categories_are_translated_and_converted(tmp_path, stitcher, out):
    (tmp_path / "x").mkdir()
    for i in range(3):  # 8 bits are enough for the categories of each, but not of all
        shard = pa.table(
            {
                "id": categories([f"{i}-{j}" for j in range(100)]),
                "lang": categories([f"{i}-{j % 90}" for j in range(100)]),
                "tags": pa.ListArray.from_arrays(range(101), categories([f"{i}-{j % 20}" for j in range(100)])),
                "vector": pa.array(list(gaussian(100, D_SOURCE, seed=i))),
            }
        )
        pq.write_table(shard, tmp_path / "x" / f"{i}.parquet")
    if out == "y.parquet":
        translate_file(stitcher, tmp_path / "x", tmp_path / out, columns="all", batch_rows=130)
    else:
        convert(tmp_path / "x", tmp_path / out)
    written = scan(tmp_path / out, columns="all").read()
    assert list(written.ids) == [f"{i}-{j}" for i in range(3) for j in range(100)]  # type: ignore[arg-type]
    assert written.payload["lang"].to_pylist() == [f"{i}-{j % 90}" for i in range(3) for j in range(100)]  # type: ignore[index]
    assert written.payload["tags"].to_pylist() == [[f"{i}-{j % 20}"] for i in range(3) for j in range(100)]  # type: ignore[index]
    assert written.payload.schema.field("lang").type == pa.dictionary(pa.int32(), pa.string())  # type: ignore[union-attr]


def categories(values: list[str]) -> pa.DictionaryArray:
    kinds = list(dict.fromkeys(values))
    return pa.DictionaryArray.from_arrays(pa.array(map(kinds.index, values), pa.int8()), pa.array(kinds))


PEAK = """
import sys
from repstitch.stitchers.stitcher import load
from repstitch.workflows.translating import translate_file
stitcher, path, out, confidence = sys.argv[1:]
translate_file(load(stitcher), path, out, source_space="old", confidence=confidence == "True")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1])
"""


@pytest.fixture(scope="module")
def large_files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return a stitcher with confidence, and files of 1,000 and of 900,000 rows in a single row group each."""
    d, folder = 384, tmp_path_factory.mktemp("large")
    stitcher = replace(
        one_way(4),
        map=AffineMap(torch.eye(d), torch.zeros(d)),
        source=Space("old", d),
        target=Space("new", d),
        source_mean=np.zeros(d, np.float32),
        target_mean=np.zeros(d, np.float32),
        calibration=calibration(d),
    )
    vectors = np.random.default_rng(0).standard_normal((900_000, d), dtype=np.float32)
    for name, n in (("small", 1_000), ("large", 900_000)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors[:n].reshape(-1)), d)
        table = pa.table({"id": pa.array(range(n)), "vector": lists})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=n, use_dictionary=False)
    return stitcher.save(folder / "stitcher"), folder / "small.parquet", folder / "large.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path, large_files, confidence):
    stitcher, *files = large_files
    peaks = []
    for path in files:
        command = [sys.executable, "-c", PEAK, str(stitcher), str(path), str(tmp_path / path.name), str(confidence)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) / 1024)
    assert pq.read_metadata(tmp_path / "large.parquet").num_rows == 900_000
    assert peaks[1] - peaks[0] < 150  # MiB
    (tmp_path / "large.parquet").unlink()
