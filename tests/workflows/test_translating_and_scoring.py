from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.spaces import affine_image, card, confidence, folder_of, gaussian, names

from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write, write_stream
from repstitch.errors import InputError
from repstitch.evaluation.report import table
from repstitch.names import USES
from repstitch.spaces import Space
from repstitch.stitchers.maps import AffineMap
from repstitch.stitchers.stitcher import Stitcher
from repstitch.workflows.scoring import score
from repstitch.workflows.training import train
from repstitch.workflows.translating import translate_file

D_SOURCE, D_TARGET = 6, 4


@pytest.fixture(scope="module")
def sides() -> tuple[Embeddings, Embeddings]:
    X, Y, _, _ = affine_image(200, D_SOURCE, D_TARGET, noise=0.3)
    ids = names(200)
    return Embeddings(X, card("old", D_SOURCE), ids), Embeddings(Y, card("new", D_TARGET), ids)


@pytest.fixture(scope="module")
def stitcher(sides) -> Stitcher:
    return train(*sides, method="ridge", device="cpu")


def rows_of(n: int = 50, seed: int = 3, **given) -> Embeddings:
    fields: dict[str, Any] = {
        "vectors": gaussian(n, D_SOURCE, seed),
        "space": card("old", D_SOURCE),
        "ids": names(n, "new"),
    }
    return Embeddings(**(fields | given))


def saved(path: Path, rows: Embeddings) -> Path:
    write(path, rows)
    return path


# --- translate_file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("batch_rows", [7, 50, 16_384])
def test_a_translated_file_holds_what_translate_gives_in_order(tmp_path, stitcher, dtype, batch_rows):
    rows = rows_of()
    n = translate_file(
        stitcher, saved(tmp_path / "x.parquet", rows), tmp_path / "y.parquet", dtype=dtype, batch_rows=batch_rows
    )
    found = read(tmp_path / "y.parquet")
    assert n == 50
    assert found.vectors.dtype == np.dtype(dtype)
    np.testing.assert_allclose(
        found.vectors, stitcher.translate(rows.vectors).astype(dtype), atol=1e-6 if dtype == "float32" else 1e-3
    )
    assert list(found.ids) == list(rows.ids)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "y.parquet"]


def test_a_translated_file_reads_back_as_rows_of_the_target_space(tmp_path, stitcher):
    translate_file(stitcher, saved(tmp_path / "x.parquet", rows_of()), tmp_path / "y.parquet")
    found = read(tmp_path / "y.parquet")
    assert found.space == stitcher.target
    assert found.declared
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


def test_rows_without_ids_are_named_by_their_position_or_by_the_ids_given(tmp_path, stitcher):
    np.save(tmp_path / "x.npy", rows_of(12).vectors)
    (tmp_path / "ids.txt").write_text("\n".join(names(12, "doc")))
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet", batch_rows=5)
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.parquet", batch_rows=5, ids=tmp_path / "ids.txt")
    assert list(read(tmp_path / "y.parquet").ids) == [str(i) for i in range(12)]  # type: ignore[arg-type]
    assert list(read(tmp_path / "z.parquet").ids) == list(names(12, "doc"))  # type: ignore[arg-type]


def test_at_most_one_batch_is_held_at_a_time(tmp_path, stitcher, monkeypatch):
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
    """Have the translation of that batch stopped by Ctrl-C; returns the list of batch sizes that were asked for."""
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
def test_a_stopped_translation_goes_on_to_the_same_file(tmp_path, stitcher, monkeypatch, kind, batch, then):
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
    assert sum(sizes) == 35 - 10 * (batch - 1)  # what was done is not done again
    translate_file(stitcher, tmp_path / kind, tmp_path / "whole.parquet", batch_rows=10)
    resumed, whole = pq.read_table(tmp_path / "y.parquet"), pq.read_table(tmp_path / "whole.parquet")
    assert resumed.column("id") == whole.column("id")
    vectors = [read(tmp_path / name).vectors for name in ("y.parquet", "whole.parquet")]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert resumed.schema.metadata == whole.schema.metadata
    assert not list(tmp_path.glob("*.partial"))


def test_a_translation_stopped_at_the_same_batches_gives_the_same_bytes(tmp_path, stitcher, monkeypatch):
    path = saved(tmp_path / "x.parquet", rows_of(35))
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(KeyboardInterrupt):
            translate_file(stitcher, path, tmp_path / "y.parquet", batch_rows=10)
    for name in ("y.parquet", "whole.parquet"):
        translate_file(stitcher, path, tmp_path / name, batch_rows=10)
    assert (tmp_path / "y.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


@pytest.mark.parametrize("change", ["another stitcher", "another file", "another dtype", "other ids"])
def test_the_rest_of_another_job_is_not_gone_on_with(tmp_path, stitcher, monkeypatch, change):
    np.save(tmp_path / "x.npy", rows_of(30).vectors)
    (tmp_path / "ids.txt").write_text("\n".join(names(30, "doc")))
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet", batch_rows=10)
    given: dict[str, Any] = {"stitcher": stitcher, "path": tmp_path / "x.npy"}
    if change == "another stitcher":
        given["stitcher"] = replace(stitcher, output_norm="none")
    elif change == "another file":
        np.save(tmp_path / "x.npy", rows_of(30, seed=9).vectors)
    elif change == "another dtype":
        given["dtype"] = "float16"
    else:
        given["ids"] = tmp_path / "ids.txt"
    before = {p.name: p.read_bytes() for p in (tmp_path / "y.parquet.partial").iterdir()}
    with pytest.raises(InputError, match="holds the unfinished rows of another job; remove it, or run that job again"):
        translate_file(out=tmp_path / "y.parquet", batch_rows=10, **given)
    assert {p.name: p.read_bytes() for p in (tmp_path / "y.parquet.partial").iterdir()} == before


def test_an_existing_out_is_refused_and_left_as_it_is(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    (tmp_path / "y.parquet").write_text("mine")
    with pytest.raises(InputError, match=r"`out` .*y\.parquet exists and is never overwritten"):
        translate_file(stitcher, path, tmp_path / "y.parquet")
    assert (tmp_path / "y.parquet").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.parquet", "y.parquet"]


@pytest.mark.parametrize(
    ("out", "says"), [("y.npy", r"`out` must end in \.parquet"), ("no/y.parquet", "in a folder that exists")]
)
def test_an_out_that_cannot_be_written_is_refused(tmp_path, stitcher, out, says):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match=says):
        translate_file(stitcher, path, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("batch_rows", [10, 100])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN or Inf"), (-np.inf, "NaN or Inf"), (0, "all zeros")])
@pytest.mark.parametrize("kind", ["x.npy", "x.parquet"])
def test_a_bad_row_is_named_and_nothing_is_left(tmp_path, stitcher, kind, value, what, batch_rows):
    vectors = gaussian(30, D_SOURCE, 3)
    vectors[23] = value
    name = "row 23" if kind == "x.npy" else "id 'new23'"
    if kind == "x.npy":
        np.save(tmp_path / kind, vectors)
    else:
        saved(tmp_path / kind, rows_of(30, vectors=vectors))
    with pytest.raises(InputError, match=f"holds rows that cannot be translated: {name} is {what}"):
        translate_file(stitcher, tmp_path / kind, tmp_path / "y.parquet", batch_rows=batch_rows)
    assert [p.name for p in tmp_path.iterdir()] == [kind]


def test_rows_too_long_for_float16_are_refused_and_nothing_is_left(tmp_path, stitcher):
    map = AffineMap(stitcher.map.weight * 1e6, stitcher.map.bias)
    large = replace(stitcher, map=map, output_norm="none")
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`dtype` float16 cannot hold the translation of id 'new0'; use float32"):
        translate_file(large, path, tmp_path / "y.parquet", dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    translate_file(large, path, tmp_path / "y.parquet")
    assert np.isfinite(read(tmp_path / "y.parquet").vectors).all()


def test_another_dtype_is_refused(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`dtype` must be float32 or float16; got 'float64'"):
        translate_file(stitcher, path, tmp_path / "y.parquet", dtype="float64")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (card("old", D_SOURCE, revision="def"), r"card says another identity \(revision 'def' against 'abc'\)"),
        (card("old", D_SOURCE, pooling="mean"), r"card says another identity \(pooling 'mean' against 'cls'\)"),
        (card("other", D_SOURCE), r"card says another identity \(encoder 'timm:other' against 'timm:old'\)"),
        (Space("other", D_SOURCE), r"card says another identity \(name 'other' against 'old'\)"),
    ],
)
def test_rows_of_another_space_are_refused_though_the_dimensions_agree(tmp_path, stitcher, space, says):
    path = saved(tmp_path / "x.parquet", rows_of(space=space))
    with pytest.raises(InputError, match=says):
        translate_file(stitcher, path, tmp_path / "y.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_rows_of_another_dimension_are_refused(tmp_path, stitcher):
    np.save(tmp_path / "x.npy", gaussian(30, 9))
    with pytest.raises(InputError, match="must have 6 dimensions, those of space 'old'; got 9"):
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
def test_backwards_use_is_named(tmp_path, way, d_target):
    vectors = gaussian(9, d_target)
    if way == "card":
        path = saved(tmp_path / "x.parquet", Embeddings(vectors, Space("new", 4), names(9)))
    else:
        path = tmp_path / ("new.npy" if way == "name" else "x.npy")
        np.save(path, vectors)
    with pytest.raises(InputError, match="look like rows of 'new', the other side: a stitcher works one way only"):
        translate_file(one_way(d_target), path, tmp_path / "y.parquet")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_without_a_card_is_taken_to_be_of_the_space_with_a_warning(tmp_path, stitcher, caplog):
    np.save(tmp_path / "x.npy", gaussian(9, D_SOURCE))
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "y.parquet")
    assert "carries no space card; taken to be in old because the dimension fits" in caplog.text
    caplog.clear()
    translate_file(stitcher, tmp_path / "x.npy", tmp_path / "z.parquet", source_space=card("old", D_SOURCE))
    assert caplog.text == ""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_confidence_is_a_float32_column_for_each_measure(tmp_path, stitcher, dtype):
    sure, rows = replace(stitcher, calibration=confidence(D_SOURCE, pool=500)), rows_of()
    path = saved(tmp_path / "x.parquet", rows)
    translate_file(sure, path, tmp_path / "y.parquet", batch_rows=20, dtype=dtype, confidence=True)
    table = pq.read_table(tmp_path / "y.parquet")
    measures = ["p_match@500", "cosine_lower", "p_typical", "shared", "distance"]
    assert table.column_names == ["id", "vector", *measures]
    for name, values in sure.confidence(rows.vectors).items():
        assert str(table.schema.field(name).type) == "float"
        np.testing.assert_allclose(table[name].to_numpy(), values, rtol=1e-3)
    found = read(tmp_path / "y.parquet")
    assert found.space == sure.target
    np.testing.assert_allclose(found.vectors, sure.translate(rows.vectors), atol=1e-6 if dtype == "float32" else 1e-3)
    assert list(found.ids) == list(rows.ids)  # type: ignore[arg-type]


def test_without_confidence_no_column_is_added(tmp_path, stitcher):
    sure = replace(stitcher, calibration=confidence(D_SOURCE))
    translate_file(sure, saved(tmp_path / "x.parquet", rows_of()), tmp_path / "y.parquet")
    assert pq.read_table(tmp_path / "y.parquet").column_names == ["id", "vector"]


def test_a_stopped_translation_goes_on_with_its_confidence_and_not_without(tmp_path, stitcher, monkeypatch):
    sure = replace(stitcher, calibration=confidence(D_SOURCE))
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
    with pytest.raises(InputError, match="holds the unfinished rows of another job"):
        translate_file(sure, path, tmp_path / "y.parquet", batch_rows=10)
    assert translate_file(sure, path, tmp_path / "y.parquet", batch_rows=10, confidence=True) == 35
    found = pq.read_table(tmp_path / "y.parquet")["p_typical"].to_numpy()
    np.testing.assert_allclose(found, sure.confidence(rows_of(35).vectors)["p_typical"], rtol=1e-3)


def test_confidence_of_a_stitcher_without_calibration_is_refused(tmp_path, stitcher):
    path = saved(tmp_path / "x.parquet", rows_of())
    with pytest.raises(InputError, match="`confidence` needs a stitcher with a calibration; this one has none"):
        translate_file(replace(stitcher, calibration=None), path, tmp_path / "y.parquet", confidence=True)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


# --- score ------------------------------------------------------------------------------------------------------------


def fresh(n: int = 80) -> tuple[Embeddings, Embeddings]:
    X, Y, _, _ = affine_image(1000, D_SOURCE, D_TARGET, noise=0.3)
    late, ids = slice(1000 - n, 1000), names(n, "fresh")
    return Embeddings(X[late], card("old", D_SOURCE), ids), Embeddings(Y[late], card("new", D_TARGET), ids)


def test_seen_pairs_are_left_out_and_counted(sides, stitcher):
    new = fresh(60)
    both = tuple(
        Embeddings(np.concatenate([a.vectors, b.vectors]), a.space, np.concatenate([names(200), names(60, "fresh")]))
        for a, b in zip(sides, new, strict=True)
    )
    card = score(stitcher, *both)
    assert card["left_out"] == len(stitcher.seen) // 2
    assert card["n"] == 260 - len(stitcher.seen) // 2
    assert card["held_out"] == "unseen pairs"


def test_pairs_it_has_never_seen_are_all_scored(stitcher):
    card = score(stitcher, *fresh(60))
    assert (card["left_out"], card["n"]) == (0, 60)


def test_the_scores_are_those_of_the_translation(stitcher):
    a, b = fresh(60)
    y = b.vectors / np.linalg.norm(b.vectors, axis=1, keepdims=True)
    similar = stitcher.translate(a.vectors) @ y.T
    own = np.diag(similar)[:, None]
    card = score(stitcher, a, b)
    assert card["query"]["recall@1"] == pytest.approx(((similar >= own).sum(1) == 1).mean())
    assert card["corpus"]["recall@1"] == pytest.approx(((own <= similar.T).sum(1) == 1).mean())
    assert card["reconstruction"]["cosine"] == pytest.approx(own.mean(), abs=1e-5)


def test_pairs_trained_on_by_position_are_known_again_by_their_bytes(sides):
    X, Y = (side.vectors for side in sides)
    named: dict[str, Any] = {"source_space": card("old", D_SOURCE), "target_space": card("new", D_TARGET)}
    stitcher = train(X, Y, method="ridge", device="cpu", split_shares=(0.8, 0.2, 0), **named)
    with pytest.raises(InputError, match="All 200 pairs were used to train this stitcher; give pairs it has not seen"):
        score(stitcher, X[::-1], Y[::-1], **named)


@pytest.mark.parametrize("uses", [("query",), ("corpus",), USES])
def test_the_uses_asked_for_are_scored(stitcher, uses):
    assert [use for use in USES if use in score(stitcher, *fresh(), uses=uses)] == list(uses)


@pytest.mark.parametrize("uses", ["query", (), ("index",), ("query", "index")])
def test_uses_that_there_are_not_are_refused(stitcher, uses):
    with pytest.raises(InputError, match="`uses` must be a tuple of query and corpus"):
        score(stitcher, *fresh(), uses=uses)


def test_swapped_sides_are_refused_by_their_cards(stitcher):
    a, b = fresh()
    with pytest.raises(InputError, match=r"`source` must have 6 dimensions.* These look like rows of 'new'"):
        score(stitcher, b, a)


def test_swapped_files_of_one_dimension_without_cards_are_told_apart_by_their_means(tmp_path):
    X, Y = (
        gaussian(200, 5, 1) + np.array([3, 0, 0, 0, 0], np.float32),
        gaussian(200, 5, 2) + np.array([0, 3, 0, 0, 0], np.float32),
    )
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    stitcher = train(X, Y, method="ridge", device="cpu", source_space="old", target_space="new")
    with pytest.raises(InputError, match="`source` looks like rows of 'new', the other side"):
        score(stitcher, tmp_path / "y.npy", tmp_path / "x.npy")


def test_bad_rows_are_refused_or_left_out_and_counted(stitcher):
    a, b = fresh(60)
    a.vectors[7] = np.nan
    with pytest.raises(InputError, match=r"1 with source NaN or Inf \(first: id 'fresh7'\)"):
        score(stitcher, a, b)
    card = score(stitcher, a, b, drop_invalid=True)
    assert card["n"] == 59
    assert card["dropped"]["source NaN or Inf"] == 1


def test_files_are_scored_as_their_rows_are(tmp_path, stitcher):
    a, b = fresh()
    paths = saved(tmp_path / "x.parquet", a), saved(tmp_path / "y.parquet", b)
    assert score(stitcher, *paths) == score(stitcher, a, b)


def test_seen_pairs_are_known_again_by_their_vectors_when_their_ids_are_others(sides, stitcher):
    renamed = tuple(Embeddings(side.vectors, side.space, names(200, "renamed")) for side in sides)
    usual, again = score(stitcher, *sides), score(stitcher, *renamed)
    assert again["left_out"] == usual["left_out"]
    assert again["query"]["recall@1"] == usual["query"]["recall@1"]


def test_a_second_run_to_one_output_is_refused_while_the_first_writes(tmp_path):
    out, space = tmp_path / "out.parquet", card("old", D_SOURCE)
    rows = np.ones((3, D_SOURCE), dtype=np.float32)

    def second(start):
        yield names(3), rows
        with pytest.raises(InputError, match=r"Another run is writing to .*out\.parquet\.partial"):
            write_stream(out, space, lambda start: iter([(names(3), rows)]), job={})

    assert write_stream(out, space, second, job={}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


# --- by relevance judgements ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict[str, Any]:
    """Documents that training partly saw, queries near the last 60 of them, and who is relevant to whom."""
    X, Y, _, _ = affine_image(200, D_SOURCE, D_TARGET, noise=0.3)
    ids = names(60, "q")
    queries = X[140:] + 0.05 * gaussian(60, D_SOURCE, 7), Y[140:] + 0.05 * gaussian(60, D_TARGET, 8)
    qrels = tmp_path_factory.mktemp("judged") / "rel.tsv"
    lines = [f"q{i}\titem{140 + i}\t2" for i in range(60)]
    qrels.write_text("\n".join(["query\tdocument\tgrade", *lines, "stranger\titem1\t1"]), encoding="utf-8")
    return {
        "source_queries": Embeddings(queries[0], card("old", D_SOURCE), ids),
        "target_queries": Embeddings(queries[1], card("new", D_TARGET), ids),
        "qrels": qrels,
    }


def test_relevance_is_scored_over_all_documents_and_decides_the_verdicts(sides, stitcher, judged):
    card = score(stitcher, *sides, **judged)
    found = card["relevance"]
    assert found["documents"] == 200
    assert found["documents_seen_in_training"] == card["left_out"] > 0
    assert (found["unknown_queries"], found["queries_seen_in_training"]) == (1, 0)
    y = sides[1].vectors / np.linalg.norm(sides[1].vectors, axis=1, keepdims=True)
    similar = stitcher.translate(judged["source_queries"].vectors) @ y.T
    place = (similar > similar[np.arange(60), 140 + np.arange(60)][:, None]).sum(1)
    by_hand = np.where(place < 10, 1 / np.log2(place + 2), 0).mean()
    assert found["query"]["ndcg@10"]["translated"]["score"] == pytest.approx(by_hand, abs=1e-3)
    for use in USES:
        assert card[use]["verdict"] == found[use]["verdict"]
        assert card[use]["verdict"]["measure"] == "ndcg@10"
    assert "60 queries" in table(card)
    assert f"judged among 200 documents ({card['left_out']} seen in training)" in table(card)


def test_queries_seen_in_training_do_not_judge(sides, stitcher, judged, tmp_path):
    qrels = tmp_path / "rel.tsv"
    qrels.write_text("\n".join(f"item{i}\titem{i}\t1" for i in range(200)), encoding="utf-8")
    queries = {"source_queries": sides[0], "target_queries": sides[1], "qrels": qrels}
    found = score(stitcher, *sides, **queries)["relevance"]
    assert found["queries_seen_in_training"] == len(stitcher.seen) // 2
    assert found["query"]["queries"] == 200 - len(stitcher.seen) // 2


def test_queries_that_share_their_ids_with_other_documents_judge(sides, stitcher, judged, tmp_path):
    qrels = tmp_path / "rel.tsv"
    qrels.write_text("\n".join(f"item{i}\titem{140 + i}\t1" for i in range(60)), encoding="utf-8")
    numbered = {side: replace(judged[side], ids=names(60)) for side in ("source_queries", "target_queries")}
    found = score(stitcher, *sides, **numbered, qrels=qrels)["relevance"]
    assert found["queries_seen_in_training"] == 0
    assert found["query"]["queries"] == 60


@pytest.mark.parametrize("left_out", ["source_queries", "target_queries", "qrels"])
def test_queries_and_judgements_belong_together(sides, stitcher, judged, left_out):
    with pytest.raises(InputError, match="`source_queries`, `target_queries` and `qrels` belong together"):
        score(stitcher, *sides, **(judged | {left_out: None}))


@pytest.mark.parametrize("side", ["source_queries", "target_queries"])
def test_relevance_needs_ids(sides, stitcher, judged, side):
    with pytest.raises(InputError, match="With `qrels` all four files must have ids"):
        score(stitcher, *sides, **(judged | {side: replace(judged[side], ids=None)}))


def test_queries_of_the_other_space_are_refused(sides, stitcher, judged):
    swapped = judged | {"source_queries": judged["target_queries"], "target_queries": judged["source_queries"]}
    with pytest.raises(InputError, match="the other side"):
        score(stitcher, *sides, **swapped)
