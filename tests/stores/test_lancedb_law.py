"""Rows of a LanceDB table that other programs write while a job runs end up right."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.lance_jobs import (
    D_NEW,
    MIGRATION,
    W,
    Writers,
    assert_translated,
    begun,
    catch_up,
    cut,
    fill,
    first_pass,
    open_table,
    slowly,
    translate,
    vectors,
)
from helpers.lance_world import LanceWorld, vectors_of

from repstitch.stores.store import MISSING

KINDS = ("insert", "update", "touch", "delete", "dual")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "kinds",
    [KINDS, pytest.param((*(KINDS * 6), "compact"), marks=pytest.mark.slow)],
    ids=["rows", "compaction too"],
)
def test_rows_that_two_writers_change_during_the_fill_are_neither_lost_nor_stale_nor_doubled(tmp_path, kinds):
    world, store = begun(tmp_path, 1200)
    with Writers(world, 1200, kinds) as writers:
        first_pass(store, slowly)
        for _ in range(5):
            store.catch_up(translate)
            time.sleep(0.1)
    assert not writers.errors
    assert min(writers.n_writes.values()) > 0
    catch_up(store)
    assert store.count_rest() == 0
    writers.assert_law("vector_new")
    assert store.states().get("native", 0) == len(writers.native)
    world.latest.validate()


def test_rows_that_are_written_across_the_cut_over_are_repaired(tmp_path):
    world, store = begun(tmp_path, 1000)
    fill(store)
    with Writers(world, 1000, ("insert", "update", "touch", "delete")) as writers:
        time.sleep(0.3)
        done = cut(store)
        time.sleep(0.2)
    assert done.n_rest > 0
    catch_up(store)
    assert all("different schema" in str(error) for error in writers.errors)  # old writers are refused afterwards
    writers.assert_law("vector")
    assert store.count_rest() == 0


def test_a_row_that_is_committed_between_the_check_and_the_swap_is_repaired_and_reported(tmp_path, monkeypatch):
    from repstitch.stores.lancedb import swapping

    world, store = begun(tmp_path)
    fill(store)
    swap = swapping._swap

    def late(*arguments):
        world.insert([9000], vectors(1, seed=5))
        world.update([3], vectors(1, seed=6))
        return swap(*arguments)

    monkeypatch.setattr(swapping, "_swap", late)
    done = cut(store)
    assert done.repaired == 2
    assert "2 versions between" in done.notes[0]
    assert_translated(world, "vector_old", "vector")


def test_rows_of_a_dual_writer_between_the_check_and_the_swap_end_up_right(tmp_path, monkeypatch):
    from repstitch.stores.lancedb import swapping

    world, store = begun(tmp_path)
    fill(store)
    swap = swapping._swap
    new = vectors(2, D_NEW, seed=7)

    def late(*arguments):
        world.dual([3, 4], vectors(2, seed=5), new)
        world.update([3], vectors(1, seed=6))
        return swap(*arguments)

    monkeypatch.setattr(swapping, "_swap", late)
    assert cut(store).repaired == 2
    assert_translated(world, "vector_old", "vector", native=[4])
    news: Any = world.column("vector")
    np.testing.assert_array_equal(news[4], new[1])


def test_a_dual_writer_keeps_its_vectors_in_fragments_that_are_not_filled_yet(tmp_path):
    world, store = begun(tmp_path)
    old, new = vectors(3, seed=8), vectors(3, D_NEW, seed=9)
    world.dual([1, 50, 150], old, new)
    fill(store)
    assert store.states() == {"translated": 197, "native": 3}
    assert_translated(world, native=[1, 50, 150])
    np.testing.assert_array_equal(world.column("vector_new")[50], new[1])


def test_a_native_row_whose_old_vector_alone_changes_later_is_translated(tmp_path):
    world, store = begun(tmp_path)
    world.dual([1], vectors(1, seed=8), vectors(1, D_NEW, seed=9))
    fill(store)
    world.update([1], vectors(1, seed=10))
    assert store.count_rest() == 1
    fill(store)
    assert store.states() == {"translated": 200}
    assert_translated(world)


def test_a_row_whose_old_vector_alone_changes_after_a_dual_write_that_was_not_looked_at_is_translated(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    dual, new = vectors(4, seed=8), vectors(4, D_NEW, seed=9)
    world.dual([1, 2, 3], dual[:3], new[:3])
    world.touch([3])
    world.update([1], vectors(1, seed=10))
    world.touch([1, 2])
    for number in range(4, 9):
        world.update([number], vectors(1, seed=number))
    world.compact()
    fill(store)
    assert store.states() == {"translated": 198, "native": 2}
    assert_translated(world, native=[2, 3])
    news: Any = world.column("vector_new")
    np.testing.assert_array_equal(news[2], new[1])


def forget_versions(world: LanceWorld) -> None:
    world.compact()
    world.latest.cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    assert len(world.latest.versions()) == 1


def test_vectors_of_a_dual_writer_are_kept_and_counted_when_the_versions_are_gone(tmp_path, caplog):
    world, store = begun(tmp_path)
    fill(store)
    old, new = vectors(10, seed=8), vectors(10, D_NEW, seed=9)
    world.dual(range(10, 20), old, new)
    world.update([30], vectors(1, seed=10))
    forget_versions(world)
    store = open_table(store.address.to_text())
    store.resume(MIGRATION)
    fill(store)
    assert store.states() == {"translated": 190, "native": 10}
    assert_translated(world, native=range(10, 20))
    news: Any = world.column("vector_new")
    np.testing.assert_array_equal([news[number] for number in range(10, 20)], new)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "new vectors of 10 rows" in caplog.text


def test_old_vectors_that_are_written_after_the_versions_were_removed_are_translated(tmp_path, caplog):
    world, store = begun(tmp_path)
    fill(store)
    dual, new = vectors(2, seed=8), vectors(2, D_NEW, seed=9)
    world.dual([1, 2], dual, new)
    forget_versions(world)
    world.update([1], vectors(1, seed=10))
    world.touch([2])
    fill(store)
    assert store.states() == {"translated": 199, "native": 1}
    assert_translated(world, native=[2])
    assert "new vectors of 1 rows" in caplog.text


def test_vectors_that_two_commits_of_a_dual_writer_bring_are_native(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    world.update([5], vectors(1, seed=8))
    new = pa.table({"id": pa.array([5]), "vector_new": vectors_of(vectors(1, D_NEW, seed=9))})
    world.latest.merge_insert("id").when_matched_update_all().execute(new)
    fill(store)
    assert store.states() == {"translated": 199, "native": 1}


def test_a_row_whose_old_vector_is_removed_loses_its_translation(tmp_path):
    world, store = begun(tmp_path)
    fill(store)
    world.update([7], np.full((1, 16), np.nan))
    fill(store)
    assert world.column("vector_new")[7] is None
    assert store.count_rest() == 0


def test_a_fragment_whose_rows_are_updated_in_place_while_it_is_translated_is_committed_and_caught_up(tmp_path):
    world, store = begun(tmp_path)

    def while_written(rows):
        if 0 in world.column("vector"):
            world.update([0], vectors(1, seed=12))
            world.delete([1])
        return translate(rows)

    unit = store.units()[0]
    assert store.fill(unit, while_written) == 200
    assert store.count_rest() == 1
    fill(store)
    assert_translated(world)
    assert len(world.column("vector_new")) == 199


def test_compaction_before_the_fill_ends_does_not_hide_rows_that_are_still_to_do(tmp_path):
    from dataclasses import replace

    world, store = begun(tmp_path)
    unit = store.units()[0]
    store.fill(replace(unit, token=unit.token[:1]), translate)
    world.compact()
    assert len(world.latest.get_fragments()) == 1
    assert store.count_rest() == 160
    assert fill(store) == 160
    assert_translated(world)
    world.latest.validate()


def test_the_index_on_the_new_column_sees_rows_that_were_changed_after_it_was_built(tmp_path):
    world, store = begun(tmp_path, 600, index=True)
    fill(store)
    store.index(lambda share: None)
    late = vectors(1, seed=20) * 5
    world.update([3], late)
    fill(store)
    assert store.search(late @ W, 1, "new").ids[0, 0] == "3"
    before = vectors(600)[3:4] @ W
    assert store.search(before, 1, "new").ids[0, 0] != "3"
    stamp = store.index_stamp()
    world.compact()
    store.index(lambda share: None)
    assert store.index_stamp() == stamp  # it is the same index, with the late rows
    assert store.search(late @ W, 1, "new").ids[0, 0] == "3"
    index = next(index for index in world.latest.describe_indices() if index.name == "vector_new_idx")
    assert index.num_rows_indexed == 600
    world.latest.drop_index("vector_new_idx")
    assert store.index_stamp() == MISSING
    world.latest.create_index("vector_new", "IVF_FLAT", num_partitions=2, name="vector_new_idx")
    assert store.index_stamp() not in (MISSING, stamp)


SLOW_FILL = """
import sys, time
from helpers.lance_jobs import MIGRATION, open_table, translate
store = open_table(sys.argv[1])
store.begin(MIGRATION, {"phase": "filling"})
store.resume(MIGRATION)
def slowly(rows):
    print("translating", flush=True)
    time.sleep(0.05)
    return translate(rows)
from dataclasses import replace
with store.locked():
    for unit in store.units():
        for fragment in unit.token:
            store.fill(replace(unit, token=(fragment,)), slowly)
    print("done", flush=True)
    time.sleep(60)
"""


def test_a_job_goes_on_after_kill_9(tmp_path):
    world = LanceWorld(tmp_path)
    address = world.create(range(500), vectors(500))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", SLOW_FILL, address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    store = open_table(address)
    with store.locked():  # the lock ended with the process
        store.begin(MIGRATION, {"phase": "filling"})
        store.resume(MIGRATION)
        fill(store)
    assert_translated(world)
    assert store.states() == {"translated": 500}
    cut(store)
    assert_translated(world, "vector_old", "vector")
