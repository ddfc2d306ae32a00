"""One table of tests for all stores: what a store declares, it does, and what it does not declare is refused."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.migrations import (
    KINDS,
    Application,
    Running,
    check_rows_are_right,
    opened,
    resumed,
    settings_of,
    stitcher_of,
)
from helpers.spaces import card, gaussian
from helpers.worlds import LIVE

from repstitch.bulk import running
from repstitch.bulk.finishing import clean_up, cut_over, roll_back, status
from repstitch.bulk.job import job_of
from repstitch.bulk.planning import make_plan
from repstitch.bulk.report import plan_text
from repstitch.bulk.running import run
from repstitch.bulk.verification import verify
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.stitchers.held_out_rows import HeldOutRows

N, D, E = 300, 64, 96
Rows = dict[int, tuple[np.ndarray | None, np.ndarray | None]]


def made(world, n: int = N, d: int = D, **options) -> tuple[str, np.ndarray]:
    vectors = gaussian(n, d, 1)
    return world.create(list(range(n)), vectors, **options), vectors


def readers_vectors(world, n: int = N) -> np.ndarray:
    rows = world.read()
    return np.stack([rows[i][1] for i in range(n)])


def settings(world, **others):
    return settings_of(**{**world.options, **others})


def held_out_of(stitcher, vectors: np.ndarray, n: int = 200) -> HeldOutRows:
    """Return native rows that are the translations with a little noise."""
    native = stitcher.translate(vectors[:n]) + 0.01 * gaussian(n, stitcher.target.dim, 9)
    return HeldOutRows(np.arange(n).astype(str).astype(object), native.astype(np.float32))


def verified(store, stitcher, world, vectors, **others):
    run(store, stitcher, settings(world, **others))
    return verify(store, stitcher, settings(world), held_out_of(stitcher, vectors))


def test_a_table_is_moved_shown_to_readers_moved_back_and_left_as_found(world, stitcher):
    address, vectors = made(world, index=True)
    before, rows_before = world.schema(), world.read()
    expected = stitcher.translate(vectors)
    with opened(address) as store:
        plan = make_plan(store, stitcher, settings(world))
        assert world.schema() == before
        assert plan["rows"] == N
        assert plan["dimensions"] == {"old": D, "new": E}
        assert plan["peak_bytes"] >= N * E * 4
        job, result = verified(store, stitcher, world, vectors)
        assert (job.phase, result["passed"], result["complete"]) == ("verified", True, True)
        assert result["rows"]["translated"] == N
        assert result["map"]["recall@1"] > 0.99
    with opened(address) as store:
        cut_over(store, stitcher, settings(world))
    after = world.read()
    assert {key: body for key, (body, _) in after.items()} == {key: body for key, (body, _) in rows_before.items()}
    np.testing.assert_allclose(np.stack([after[i][1] for i in range(N)]), expected, atol=1e-5)
    with opened(address) as store:
        _, done = roll_back(store, settings(world))
        assert done.n_without_old == 0
    again = world.read()
    np.testing.assert_array_equal(np.stack([again[i][1] for i in range(N)]), vectors)
    with opened(address) as store:
        clean_up(store)
    assert world.schema() == before
    assert {key: body for key, (body, _) in world.read().items()} == {k: body for k, (body, _) in rows_before.items()}


def test_a_plan_says_whether_the_scores_hold_for_the_table_and_how_native_rows_change_a_search(world, stitcher):
    address, vectors = made(world)
    plain = held_out_of(stitcher, vectors)
    alike = replace(plain, translated=stitcher.translate(vectors[:200]), source=gaussian(200, D, 77))
    apart = replace(alike, source=gaussian(200, D, 77) + 9)
    with opened(address) as store:
        plans = [make_plan(store, stitcher, settings(world), rows) for rows in (None, plain, alike, apart)]
        assert [plan["quality"]["in_your_domain"] for plan in plans] == ["unknown", "unknown", "as scored", "unknown"]
        assert plans[1]["quality"]["likeness"] is plans[1]["mixed"] is None
        assert plans[2]["quality"]["likeness"].startswith("The corpus is like the pairs")
        assert plans[3]["quality"]["likeness"].startswith("The corpus is unlike the pairs")
        mixed = plans[2]["mixed"]
        assert [row["share"] for row in mixed["plain"]] == [0.0, 0.05, 0.2, 0.5]
        assert mixed["rows"] == 200
        overlaps = [row["overlap"] for row in mixed["with_length"]]
        assert overlaps == sorted(overlaps)  # the translations are nearly native, so more native rows are better
        assert "Mixed:       share of the right ten results, of 200 held-out rows" in plan_text(plans[2])


def test_clean_up_after_the_cut_over_leaves_the_new_vectors_alone(world, stitcher):
    address, vectors = made(world)
    with opened(address) as store:
        verified(store, stitcher, world, vectors)
        cut_over(store, stitcher, settings(world))
        assert clean_up(store) == "cut over"
    np.testing.assert_allclose(readers_vectors(world), stitcher.translate(vectors), atol=1e-5)
    if world.options.get("view"):
        return  # the table's own vectors were the old ones, so its address has no column now
    with opened(address) as store:
        assert job_of(store) is None
        assert store.facts().dim == E
        assert clean_up(store) == ""


@pytest.mark.parametrize("moment", ["begun", "filled", "verified", "cut over and back"])
def test_clean_up_before_the_cut_over_leaves_the_table_as_found(world, stitcher, moment):
    address, vectors = made(world, index=True)
    before = world.schema()
    with opened(address) as store:
        if moment == "begun":
            from repstitch.bulk.running import begin

            begin(store, stitcher, settings(world))
        elif moment == "filled":
            run(store, stitcher, settings(world))
        else:
            verified(store, stitcher, world, vectors)
        if moment == "cut over and back":
            cut_over(store, stitcher, settings(world))
            roll_back(store, settings(world))
    with opened(address) as store:
        clean_up(store)
    assert world.schema() == before
    np.testing.assert_array_equal(readers_vectors(world), vectors)


@pytest.mark.slow
def test_rows_written_at_any_moment_end_up_right(live_world, stitcher):
    address, vectors = made(live_world, index=True)
    with opened(address) as store:
        rows: Rows = {i: (vectors[i], None) for i in range(N)}
        halves = [{i: rows[i] for i in range(N) if i % 2 == part} for part in (0, 1)]
        writers = [
            Application(live_world, half, 10_000 * (part + 1), stitcher, seed=part) for part, half in enumerate(halves)
        ]
        with Running(writers, live_world.pause) as running:
            running.wait_for(5)
            run(store, stitcher, settings(live_world))
            running.kinds = (*running.kinds, "dual")
            running.wait_for(live_world.writes)
            run(store, stitcher, settings(live_world))
            _, result = verify(store, stitcher, settings(live_world, index_recall=0.5), held_out_of(stitcher, vectors))
            assert result["rows"]["passed"], result
            running.wait_for(live_world.writes)
            running.kinds = tuple(kind for kind in running.kinds if kind != "dual")
            cut_over(store, stitcher, settings(live_world, max_rest=10_000), without_search=True)
            running.wait_for(live_world.writes)
        assert [one.errors for one in writers] == [[], []]
        expected = writers[0].rows | writers[1].rows
        run(
            store, stitcher, settings(live_world)
        )  # for old vectors that were written after the cut-over, where that is possible
        resumed(store)
        counts = check_rows_are_right(store, stitcher, expected)
        assert counts["translated"] > 0
        seen = live_world.read()
        assert set(seen) == set(expected)
        assert {len(vector) for _, vector in seen.values()} == {E}
        _, done = roll_back(store, settings(live_world))
        written_after = sum(old is None for old, _ in expected.values())
        assert done.n_without_old == written_after > 0
        seen = live_world.read()
        assert all(np.allclose(seen[key][1], old) for key, (old, _) in expected.items() if old is not None)
        assert all(seen[key][1] is None for key, (old, _) in expected.items() if old is None)


def test_rows_without_vectors_and_rows_of_zeros_do_not_stop_a_job(world, stitcher):
    vectors = gaussian(N, D, 1)
    vectors[:5] = 0
    address = world.create(list(range(N)), vectors)
    with opened(address) as store:
        _job, result = verified(store, stitcher, world, vectors[5:])
        assert result["rows"] | {"first_bad": None} == result["rows"]
        assert (result["rows"]["translated"], result["rows"]["skipped"]) == (N - 5, 5)


def test_equal_dimensions_keep_the_names_unless_a_swap_is_stated(world):
    stitcher = stitcher_of(D, D)
    address, vectors = made(world)
    with opened(address) as store:
        verified(store, stitcher, world, vectors)
        job, _ = cut_over(store, stitcher, settings(world))
        assert job.migration.keep_names or job.migration.view
    if not world.read().keys() or world.options.get("view"):
        return
    np.testing.assert_array_equal(readers_vectors(world), vectors)
    with opened(address) as store:
        roll_back(store, settings(world))
        verified(store, stitcher, world, vectors)
        cut_over(store, stitcher, settings(world, swap_equal=True))
    np.testing.assert_allclose(readers_vectors(world), stitcher.translate(vectors), atol=1e-5)


def test_rows_of_the_old_space_are_recognised_after_a_swap_between_equal_dimensions(live_world):
    stitcher = stitcher_of(D, D)
    vectors = gaussian(600, D, 1) + 0.5  # real embeddings have a mean, too
    address = live_world.create(list(range(600)), vectors)
    with opened(address) as store:
        swap = {} if live_world.options.get("view") else {"swap_equal": True}
        run(store, stitcher, settings(live_world, **swap))
        verify(store, stitcher, settings(live_world), held_out_of(stitcher, vectors))
        cut_over(store, stitcher, settings(live_world, **swap))
    old, new = gaussian(50, D, 5) + 0.5, gaussian(950, D, 6) + 0.5
    live_world.insert(list(range(10_000, 10_050)), old)
    live_world.insert(list(range(20_000, 20_950)), stitcher.translate(new))
    with opened(address) as store:
        written = status(store)["written_since"]
    assert written["rows"] == 1_000
    assert 50 <= written["look_old"] <= 59
    assert written["recognised"] > 0.95


def test_a_cut_over_needs_a_verification_by_search(world, stitcher):
    address, _vectors = made(world, index=True)
    with opened(address) as store:
        with pytest.raises(InputError, match="There is no migration"):
            cut_over(store, stitcher, settings(world))
        run(store, stitcher, settings(world))
        with pytest.raises(InputError, match="must be verified first; run"):
            cut_over(store, stitcher, settings(world))
        job, result = verify(store, stitcher, settings(world), None)
        assert (job.phase, result["passed"], result["complete"]) == ("incomplete", True, False)
        with pytest.raises(InputError, match="not verified by search"):
            cut_over(store, stitcher, settings(world))
        cut_over(store, stitcher, settings(world), without_search=True)


def test_a_new_vector_that_is_not_the_translation_is_found(world, stitcher):
    address, _vectors = made(world)
    with opened(address) as store:
        run(store, stitcher, settings(world))
        other = stitcher_of(seed=1)
        from repstitch.bulk.row_check import check_rows
        from repstitch.bulk.translation import Translation

        check = check_rows(store, resumed(store), Translation(other), [])
        assert (check.wrong, check.passed) == (N, False)


def test_a_row_that_is_not_right_fails_the_verification_and_the_next_run_mends_it(world, stitcher):
    address, vectors = made(world, index=True)
    held_out = held_out_of(stitcher, vectors)
    with opened(address) as store:
        run(store, stitcher, settings(world))
        for key in (7, 299):
            world.corrupt(key, np.ones(E, np.float32))
        job, result = verify(store, stitcher, settings(world), held_out)
        assert (job.phase, result["passed"]) == ("indexed", False)
        assert result["rows"]["wrong"] + result["rows"]["changed"] == 2
        assert result["rows"]["first_bad"] in ("7", "299")
        with pytest.raises(InputError, match="its last verification failed"):
            cut_over(store, stitcher, settings(world))
        run(store, stitcher, settings(world))
        job, result = verify(store, stitcher, settings(world), held_out)
        assert (job.phase, result["rows"]["translated"]) == ("verified", N)


def test_a_row_that_is_not_right_after_the_cut_over_is_mended_by_the_next_run(world, stitcher):
    address, vectors = made(world)
    names = {} if world.options.get("view") else {"keep_names": True}
    with opened(address) as store:
        verified(store, stitcher, world, vectors, **names)
        cut_over(store, stitcher, settings(world))
        world.corrupt(7, np.ones(E, np.float32))
        for is_right in (False, True):
            job, result = verify(store, stitcher, settings(world), held_out_of(stitcher, vectors))
            assert (job.phase, result["rows"]["passed"]) == ("cut over", is_right)
            run(store, stitcher, settings(world))


@pytest.mark.parametrize("fits", [True, False])
def test_native_vectors_must_have_something_to_do_with_their_rows(live_world, stitcher, fits):
    address, vectors = made(live_world)
    native = stitcher.translate(vectors[:40]) + gaussian(40, E, 3) / 5 if fits else np.ones((40, E), np.float32)
    with opened(address) as store:
        run(store, stitcher, settings(live_world))
        live_world.dual(list(range(40)), vectors[:40] + 1, native.astype(np.float32))
        run(store, stitcher, settings(live_world))
        _, result = verify(store, stitcher, settings(live_world), None)
        assert (result["rows"]["native"], result["rows"]["natives_fit"], result["passed"]) == (40, fits, fits)


def test_target_rows_that_are_not_those_of_the_table_fail_or_are_refused(world, stitcher, tmp_path):
    address, _ = made(world)

    def target(ids: np.ndarray) -> str:
        path = tmp_path / f"{ids[0]}.parquet"
        write(path, Embeddings(gaussian(len(ids), E, 5), card("new", E), ids))
        return str(path)

    with opened(address) as store:
        run(store, stitcher, settings(world))
        job, result = verify(store, stitcher, settings(world, target=target(np.arange(200))), None)
        assert (job.phase, result["map"]["passed"]) == ("indexed", False)
        with pytest.raises(InputError, match=r"At least 20 rows of `target` must be in the table.*got 10"):
            verify(store, stitcher, settings(world, target=target(np.arange(290, 390))), None)


def test_the_translations_themselves_are_no_target_rows_to_verify_with(world, stitcher, tmp_path):
    address, vectors = made(world)
    write(tmp_path / "own.parquet", Embeddings(stitcher.translate(vectors), card("new", E), np.arange(N)))
    with opened(address) as store:
        run(store, stitcher, settings(world))
        with pytest.raises(InputError, match="300 of its 300 rows are the translations of this migration"):
            verify(store, stitcher, settings(world, target=str(tmp_path / "own.parquet")), None)


def test_held_out_rows_that_left_the_table_do_not_verify_it(world, stitcher):
    address, vectors = made(world)
    with opened(address) as store:
        run(store, stitcher, settings(world))
        rows = held_out_of(stitcher, vectors)
        elsewhere = HeldOutRows(
            np.array([f"gone {key}" for key in rows.ids[:190]] + list(rows.ids[190:]), object), rows.vectors
        )
        job, result = verify(store, stitcher, settings(world), elsewhere)
        assert (job.phase, result["map"], result["complete"]) == ("incomplete", None, False)


def test_a_table_that_was_moved_is_not_moved_again(world):
    stitcher = stitcher_of(D, D)
    address, vectors = made(world)
    if world.options.get("view"):
        return  # the address of the table has no column after the clean-up
    with opened(address) as store:
        verified(store, stitcher, world, vectors, swap_equal=True)
        cut_over(store, stitcher, settings(world))
        clean_up(store)
    with opened(address) as store, pytest.raises(InputError, match="must be in space 'old'"):
        run(store, stitcher, settings(world, swap_equal=True))


def test_clean_up_does_not_remove_the_only_vector_of_a_row(live_world, stitcher):
    address, vectors = made(live_world)
    with opened(address) as store:
        verified(store, stitcher, live_world, vectors)
        cut_over(store, stitcher, settings(live_world))
        live_world.insert([1_000], stitcher.translate(vectors[:1]))
        roll_back(store, settings(live_world))
        for _ in range(2):  # also when the job has gone on after the roll-back
            with pytest.raises(InputError, match="1 rows have only a new vector"):
                clean_up(store)
            run(store, stitcher, settings(live_world))
        clean_up(store, discard=True)
        assert job_of(store) is None


def test_clean_up_before_the_cut_over_does_not_remove_the_only_vector_of_a_row(live_world, stitcher):
    address, vectors = made(live_world)
    with opened(address) as store:
        run(store, stitcher, settings(live_world))
        live_world.dual([3, 4], np.full((2, D), np.nan, np.float32), stitcher.translate(vectors[:2]))
        with pytest.raises(InputError, match="2 rows have only a new vector"):
            clean_up(store)
        clean_up(store, discard=True)
        assert job_of(store) is None


def test_a_run_outlives_any_number_of_lost_connections_if_it_works_in_between(world, stitcher, monkeypatch):
    address, _ = made(world)
    n_losses = []

    def lossy(opened_store, *others) -> object:
        if len(n_losses) < 7:
            n_losses.append(None)
            time.sleep(0.03)
            raise ConnectionError("away")
        return whole(opened_store, *others)

    whole = running._run
    monkeypatch.setattr(running, "_run", lossy)
    monkeypatch.setattr(running, "RETRY_SECONDS", (0.01, 0.02))
    with opened(address) as store:
        assert run(store, stitcher, settings(world)).phase == "indexed"
    n_losses.clear()
    monkeypatch.setattr(running, "RETRY_SECONDS", (0.01, 1.0))
    with opened(address) as store, pytest.raises(InputError, match=r"lost \(away\). Run the same command again"):
        run(store, stitcher, settings(world))


def test_another_stitcher_another_name_and_another_dimension_are_refused(world, stitcher):
    address, _ = made(world)
    with opened(address) as store:
        with pytest.raises(InputError, match="translates 32 dimensions"):
            run(store, stitcher_of(32, E), settings(world))
        run(store, stitcher, settings(world))
        with pytest.raises(InputError, match=f"uses stitcher version {stitcher.version}"):
            run(store, stitcher_of(seed=1), settings(world))
        with pytest.raises(InputError, match="`new_vector` must be 'vector_new'"):
            run(store, stitcher, settings(world, new_vector="other"))


def test_a_second_job_and_a_clean_up_are_refused_while_a_job_runs(world, stitcher):
    address, _ = made(world)
    with opened(address) as store, opened(address) as second, store.locked():
        with pytest.raises(InputError, match="running"):
            run(second, stitcher, settings(world))
        with pytest.raises(InputError, match="running"):
            clean_up(second)


def test_a_store_declares_what_its_tests_prove(world):
    address, _ = made(world)
    with opened(address) as store:
        declared = store.capabilities
        assert declared.concurrent_writers == (world.name in LIVE)
        assert declared.atomic_cutover == (world.name != "parquet")
        assert declared.column_in_place == (world.name != "parquet")
        assert declared.writers_guard == world.name.startswith("postgresql")


def test_what_a_store_does_not_declare_is_refused(world, stitcher):
    address, vectors = made(world)
    with opened(address) as store:
        if not store.capabilities.writers_guard:
            verified(store, stitcher, world, vectors)
            with pytest.raises(InputError, match="`guard` is not possible"):
                cut_over(store, stitcher, settings(world, guard=True))
            clean_up(store)
        if not store.capabilities.column_in_place:
            with pytest.raises(InputError, match="layout"):
                run(store, stitcher, settings(world, layout="column"))


def test_reading_needs_only_the_address(live_world):
    from repstitch.embeddings.reading import read, scan

    address, vectors = made(live_world)
    rows = ids_and_vectors(read(address))
    assert {key: vector.tolist() for key, vector in rows.items()} == dict(enumerate(vectors.tolist()))
    drawn = ids_and_vectors(read(address, sample=50, seed=3))
    assert len(drawn) == 50
    assert all((vectors[key] == vector).all() for key, vector in drawn.items())
    assert set(ids_and_vectors(read(address, sample=50, seed=4))) != set(drawn)
    assert set(ids_and_vectors(scan(address, select=["3", "7", "100000"]).read())) == {3, 7}
    assert scan(address, columns="all").payload.names == ["body", "lang", "n"]


def ids_and_vectors(rows) -> dict[int, np.ndarray]:
    assert len(set(rows.ids)) == len(rows.ids)
    return dict(zip(rows.ids.astype(int).tolist(), rows.vectors, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("d_new", [E, D])
def test_5000_rows_are_moved_under_writers_and_1000_reads(live_world, d_new):
    """Through the cut-over and back, no read sees two spaces, and no row is lost, stale or doubled."""
    stitcher, n = stitcher_of(D, d_new), 5_000
    swap = {} if d_new != D or live_world.options.get("view") else {"swap_equal": True}
    address, vectors = made(live_world, n=n)
    with opened(address) as store:
        rows: Rows = {i: (vectors[i], None) for i in range(n)}
        halves = [{i: rows[i] for i in range(n) if i % 2 == part} for part in (0, 1)]
        writers = [
            Application(live_world, half, 100_000 * (part + 1), stitcher, seed=part) for part, half in enumerate(halves)
        ]
        stop, reads, mixed = threading.Event(), [0], []

        def read() -> None:
            while not stop.is_set():
                dims = live_world.dims_of_some()
                reads[0] += 1
                if len(dims) != 1:
                    mixed.append(dims)

        readers = [threading.Thread(target=read) for _ in range(2)]
        with Running(writers, 4 * live_world.pause) as running:
            running.wait_for(5)
            run(store, stitcher, settings(live_world, **swap))
            running.kinds = (*running.kinds, "dual")
            running.wait_for(10)
            _, result = verify(store, stitcher, settings(live_world), held_out_of(stitcher, vectors))
            assert result["rows"]["passed"], result
            running.kinds = KINDS[:-1]
            for reader in readers:
                reader.start()
            if d_new == D:  # nothing would tell the applications, so they are stopped and go on with the new model
                running.stop()
            cut_over(store, stitcher, settings(live_world, max_rest=5_000, **swap), without_search=True)
            while reads[0] < 1_000:
                time.sleep(0.1)
        stop.set()
        for reader in readers:
            reader.join()
        assert [one.errors for one in writers] == [[], []]
        assert mixed == []
        run(store, stitcher, settings(live_world))
        resumed(store)
        expected = writers[0].rows | writers[1].rows
        counts = check_rows_are_right(store, stitcher, expected)
        assert counts["native"] >= 1
        roll_back(store, settings(live_world))
        clean_up(store, discard=True)  # rows that were written since the cut-over have only a new vector
        seen = live_world.read()
        assert set(seen) == set(expected)
        assert all(np.allclose(seen[key][1], old) for key, (old, _) in expected.items() if old is not None)
