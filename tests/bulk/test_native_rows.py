"""Rows that are embedded anew: from a file or by an encoder, at any moment before the cut-over."""

from pathlib import Path

import numpy as np
import pytest
from helpers.lance_world import LanceWorld
from helpers.migrations import opened, settings_of, stitcher_of
from helpers.spaces import card, gaussian

from repstitch.bulk import native_rows
from repstitch.bulk.finishing import cut_over, status
from repstitch.bulk.job import job_of
from repstitch.bulk.native_rows import NativeTexts, native_as_stored, open_native
from repstitch.bulk.running import run
from repstitch.bulk.verification import verify
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.mixing.placement import Placement
from repstitch.spaces import Space
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stores.lancedb.table import LanceTable

N, D, E = 200, 16, 24
CHOSEN = np.arange(0, N, 5)


@pytest.fixture(scope="module")
def stitcher():
    return stitcher_of(D, E)


@pytest.fixture(scope="module")
def vectors():
    return gaussian(N, D, 1)


@pytest.fixture(scope="module")
def native(stitcher, vectors):
    """Native vectors of the chosen rows: much like their translations, and three times as long."""
    return (3 * (stitcher.translate(vectors[CHOSEN]) + 0.1 * gaussian(len(CHOSEN), E, 2))).astype(np.float32)


@pytest.fixture
def file(tmp_path, native) -> str:
    write(tmp_path / "native.parquet", Embeddings(native, card("new", E), CHOSEN))
    return str(tmp_path / "native.parquet")


def held_out_of(stitcher, vectors) -> HeldOutRows:
    rows = stitcher.translate(vectors) + 0.01 * gaussian(N, E, 9)
    return HeldOutRows(np.arange(N).astype(str).astype(object), rows.astype(np.float32))


def reembed(store, stitcher, world, source: str, **settings):
    chosen = settings_of(**world.options, reembed=source, **settings)
    natives = open_native(store, stitcher, chosen)
    assert natives is not None
    return run(store, stitcher, chosen, natives), natives.counts


def test_a_share_of_the_rows_is_native_from_the_first_run_to_the_readers(world, stitcher, vectors, native, file):
    address = world.create(list(range(N)), vectors, index=True)
    with opened(address) as store:
        job, counts = reembed(store, stitcher, world, file)
        assert (job.phase, counts.to_dict()) == ("indexed", {"written": 40, "unchanged": 0, "left_out": 0})
        job, result = verify(store, stitcher, settings_of(**world.options), held_out_of(stitcher, vectors))
        assert (job.phase, result["rows"]["native"], result["rows"]["translated"]) == ("verified", 40, 160)
        assert status(store)["states"] == {"native": 40, "translated": 160}
        cut_over(store, stitcher, settings_of(**world.options))
        with pytest.raises(InputError, match="is cut over; write native vectors to the new column as your application"):
            reembed(store, stitcher, world, file)
    rows = world.read()
    unit = native / np.linalg.norm(native, axis=1, keepdims=True)
    np.testing.assert_allclose(np.stack([rows[key][1] for key in CHOSEN]), unit, atol=1e-6)


def test_native_vectors_that_are_written_after_a_verification_must_be_verified(world, stitcher, vectors, native, file):
    address = world.create(list(range(N)), vectors, index=True)
    settings = settings_of(**world.options)
    with opened(address) as store:
        run(store, stitcher, settings)
        assert verify(store, stitcher, settings, held_out_of(stitcher, vectors))[0].phase == "verified"
        job, _ = reembed(store, stitcher, world, file)
        assert (job.phase, job.verification) == ("indexed", None)
        hits = store.search(native, 1, "new")  # the index has the new vectors
        assert hits.ids[:, 0].tolist() == [str(key) for key in CHOSEN]
        with pytest.raises(InputError, match="must be verified first; run"):
            cut_over(store, stitcher, settings)
        assert verify(store, stitcher, settings, held_out_of(stitcher, vectors))[0].phase == "verified"
        job, counts = reembed(store, stitcher, world, file)
        assert (job.phase, counts.to_dict()) == ("verified", {"written": 0, "unchanged": 40, "left_out": 0})
        cut_over(store, stitcher, settings)


def test_native_vectors_are_written_as_the_length_of_translated_rows_asks(world, stitcher, vectors, native, file):
    address = world.create(list(range(N)), vectors)
    with opened(address) as store:
        job, counts = reembed(store, stitcher, world, file, translated_length=0.9)
        assert counts.written == len(CHOSEN)
        expected = job.placement.native(native)
        rows = {str(key): row for part in store.compare() for key, row in zip(part.ids, part.new, strict=True)}
        np.testing.assert_allclose(np.stack([rows[str(i)] for i in CHOSEN]), expected, atol=1e-6)
        assert expected.shape == (len(CHOSEN), E + 1)
        job, result = verify(store, stitcher, settings_of(**world.options), held_out_of(stitcher, vectors))
        assert result["passed"]
        assert result["rows"]["native"] == len(CHOSEN)
        _, again = reembed(store, stitcher, world, file)
        assert (again.written, again.unchanged) == (0, len(CHOSEN))


def test_an_interrupted_run_writes_only_the_rest_later(world, stitcher, vectors, file, monkeypatch):
    address = world.create(list(range(N)), vectors)
    with opened(address) as store:
        write_native, n_calls = type(store).write_native, []

        def interrupted(self, ids, rows) -> int:
            if n_calls:
                raise KeyboardInterrupt
            n_calls.append(None)
            return write_native(self, ids, rows)

        monkeypatch.setattr(native_rows, "BATCH_BYTES", 15 * 4 * E)
        monkeypatch.setattr(type(store), "write_native", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reembed(store, stitcher, world, file)
        job = job_of(store)
        assert job is not None
        assert job.phase == "filled"
        monkeypatch.setattr(type(store), "write_native", write_native)
        job, counts = reembed(store, stitcher, world, file)
        assert (job.phase, counts.to_dict()) == ("indexed", {"written": 25, "unchanged": 15, "left_out": 0})


def test_the_ids_choose_rows_of_a_file_and_those_without_a_row_are_counted(tmp_path, stitcher, vectors, file):
    world = LanceWorld(tmp_path)
    address = world.create(list(range(100)), vectors[:100])
    (tmp_path / "ids.txt").write_text("5\n15\n7\n195\n\n")  # 7 is not in the file, and 195 not in the table
    with opened(address) as store:
        _, counts = reembed(store, stitcher, world, file, ids=str(tmp_path / "ids.txt"))
        assert counts.to_dict() == {"written": 2, "unchanged": 0, "left_out": 2}
        assert str(counts) == "2 native vectors written; 2 ids have no row, no text or no vector"
        assert store.states() == {"native": 2, "translated": 98}


def test_native_vectors_get_the_length_of_translations(stitcher, native):
    assert np.linalg.norm(native_as_stored(native, stitcher, Placement()), axis=1) == pytest.approx(1, abs=1e-6)
    from dataclasses import replace

    np.testing.assert_array_equal(native_as_stored(native, replace(stitcher, output_norm="none"), Placement()), native)


class WordEncoder:
    """Stands for an encoder: the vector of a text is drawn by its hash. It counts the texts that it embeds."""

    def __init__(self):
        self.space, self.texts = Space("new", E), []
        self.between = lambda: None

    def encode(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        self.between()
        return np.concatenate([gaussian(1, E, sum(text.encode())) for text in texts])


def texts_of(stitcher, ids) -> tuple[NativeTexts, WordEncoder]:
    encoder = WordEncoder()
    return NativeTexts(stitcher, encoder, tuple(map(str, ids)), "body"), encoder  # type: ignore[arg-type]


def test_an_encoder_embeds_the_texts_of_the_rows_once(world, stitcher, vectors):
    address = world.create(list(range(N)), vectors, index=True)
    settings = settings_of(**world.options)
    with opened(address) as store:
        natives, encoder = texts_of(stitcher, [*CHOSEN, 10_000])
        run(store, stitcher, settings, natives)
        assert natives.counts.to_dict() == {"written": 40, "unchanged": 0, "left_out": 1}
        assert len(encoder.texts) == 40
        part = next(iter(store.compare(["5"])))
        body = store.take(["5"], ["body"])["body"].to_pylist()[0]
        np.testing.assert_allclose(
            part.new[0], native_as_stored(encoder.encode([body]), stitcher, Placement())[0], atol=1e-6
        )
        natives, encoder = texts_of(stitcher, [*CHOSEN, 1])
        run(store, stitcher, settings, natives)
        assert natives.counts.to_dict() == {"written": 1, "unchanged": 40, "left_out": 0}
        assert len(encoder.texts) == 1


def test_a_row_whose_text_changes_while_it_is_embedded_is_translated(tmp_path, stitcher, vectors):
    world = LanceWorld(tmp_path)
    address = world.create(list(range(N)), vectors)

    def change() -> None:
        world.latest.update({"body": "'another text'"}, where="id = 5")

    with opened(address) as store:
        natives, encoder = texts_of(stitcher, CHOSEN)
        encoder.between = change
        run(store, stitcher, settings_of(), natives)
        assert natives.counts.to_dict() == {"written": 39, "unchanged": 0, "left_out": 1}
        assert store.states() == {"native": 39, "translated": 161}
        assert next(iter(store.compare(["5"]))).states.tolist() == ["translated"]


def test_rows_without_a_text_are_left_out_and_an_encoder_that_fails_says_so(tmp_path, stitcher, vectors):
    world = LanceWorld(tmp_path)
    address = world.create(list(range(N)), vectors)
    world.latest.update({"body": "NULL"}, where="id = 5")
    with opened(address) as store:
        natives, encoder = texts_of(stitcher, CHOSEN)
        run(store, stitcher, settings_of(), natives)
        assert natives.counts.left_out == 1
        natives, encoder = texts_of(stitcher, [1])

        def fail() -> None:
            raise RuntimeError("out of memory")

        encoder.between = fail
        with pytest.raises(InputError, match="`reembed` 'new' failed: out of memory"):
            run(store, stitcher, settings_of(), natives)


def test_nothing_is_opened_without_a_source(tmp_path, stitcher, vectors):
    with opened(LanceWorld(tmp_path).create(list(range(N)), vectors)) as store:
        assert isinstance(store, LanceTable)
        assert open_native(store, stitcher, settings_of()) is None


def save(folder: Path, rows: np.ndarray, space: Space, ids: np.ndarray) -> str:
    write(folder / "rows.parquet", Embeddings(rows, space, ids))
    return str(folder / "rows.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", r"2 of 40 rows have NaN, Inf or only zeros. Embed them again, or leave them out"),
        ("repeats", "`reembed` must have each id once; 1 rows repeat one"),
        ("dimensions", "`reembed` must have 24 dimensions, like space 'new'; got 9"),
        ("backwards", "`reembed` must have 24 dimensions.*look like rows of 'old', the other side of the stitcher"),
        ("other space", "`reembed` must be in space 'new', but its card states another identity"),
        ("no ids", "`reembed` must have ids, by which its rows belong to those of the table"),
        ("no file", "There is no file"),
    ],
)
def test_native_vectors_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path, stitcher, vectors, native, change, message
):
    world = LanceWorld(tmp_path)
    address = world.create(list(range(N)), vectors)
    before = world.schema()
    rows, ids, space = native.copy(), CHOSEN.copy(), card("new", E)
    if change == "nan":
        rows[3, 0], rows[4] = np.nan, 0
    elif change == "repeats":
        ids[1] = ids[0]
    elif change == "dimensions":
        rows, space = gaussian(len(ids), 9), card("new", 9)
    elif change == "backwards":
        rows, space = vectors[CHOSEN], card("old", D)
    elif change == "other space":
        space = card("other", E)
    source = save(tmp_path, rows, space, ids)
    if change == "no ids":
        source = str(tmp_path / "bare.npy")
        np.save(source, rows)
    elif change == "no file":
        source = str(tmp_path / "nothing.parquet")
    with opened(address) as store, pytest.raises(InputError, match=message):
        reembed(store, stitcher, world, source)
    assert world.schema() == before
