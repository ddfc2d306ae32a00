"""What is left of a job in a LanceDB table can be removed, even if others have changed a part of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from helpers.lance_jobs import D_NEW, MIGRATION, W, begun, cut, fill, open_table, vectors
from helpers.lance_world import LanceWorld, vectors_of

from repstitch.errors import InputError

NAMES = ["id", "body", "lang", "n"]


def rename(**names: str) -> Callable[[LanceWorld], None]:
    alterations: Any = [{"path": old, "name": new} for old, new in names.items()]
    return lambda world: world.latest.alter_columns(*alterations)


def drop(*names: str) -> Callable[[LanceWorld], None]:
    return lambda world: world.latest.drop_columns(list(names))


def restore(world: LanceWorld) -> None:
    lance.dataset(str(world.path), version=1).restore()


def overwrite(world: LanceWorld) -> None:
    rows = world.latest.to_table()
    fields = [field.remove_metadata() for field in rows.schema]
    lance.write_dataset(rows.cast(pa.schema(fields)), str(world.path), mode="overwrite")


BEFORE = [
    (rename(vector="emb"), ["emb"]),
    (rename(vector_new="mine"), ["vector"]),
    (rename(vector="emb", vector_new="mine"), ["emb", "mine"]),
    (drop("vector_new"), ["vector"]),
    (drop("vector"), ["vector_new"]),
    (drop("vector_new_state"), ["vector"]),
    (restore, ["vector"]),
    (overwrite, ["vector", "vector_new"]),
]
AFTER = [
    (rename(vector="emb"), ["emb"]),
    (rename(vector_old="mine"), ["mine", "vector"]),
    (rename(vector="emb", vector_old="mine"), ["mine", "emb"]),
    (drop("vector_old"), ["vector"]),
    (drop("vector"), ["vector_old"]),
    (restore, ["vector"]),
    (overwrite, ["vector_old", "vector"]),
]


def assert_clean(world: LanceWorld, columns: list[str]) -> None:
    assert world.latest.schema.names == [*NAMES, *columns]
    assert not world.latest.tags.list()
    assert all(set(field.metadata or {}) <= {b"repstitch.space"} for field in world.latest.schema)


@pytest.mark.parametrize(("change", "columns"), BEFORE)
@pytest.mark.parametrize("name", ["&vector=vector", ""], ids=["named", "not named"])
def test_a_job_that_others_have_changed_before_the_cut_over_is_removed(tmp_path, change, columns, name):
    world, store = begun(tmp_path, 40)
    fill(store)
    change(world)
    if name == "" and change is overwrite:
        name = "&vector=vector"  # there are two columns and no job
    if name == "" and columns == ["emb", "mine"]:
        name = "&vector=emb"
    store = open_table(f"lancedb://{world.database}?table=docs{name}")
    store.clean_up()
    store.clean_up()
    assert_clean(world, columns)


@pytest.mark.parametrize(("change", "columns"), AFTER)
def test_a_job_that_others_have_changed_after_the_cut_over_is_removed(tmp_path, change, columns):
    world, store = begun(tmp_path, 40)
    fill(store)
    cut(store)
    change(world)
    store.clean_up()
    store.clean_up()
    assert_clean(world, columns)
    if "emb" in columns:
        read: Any = world.column("emb")[3]
        np.testing.assert_allclose(read, vectors(40)[3] @ W, rtol=1e-4)


def test_a_job_whose_column_of_vectors_is_gone_is_refused_except_for_the_clean_up(tmp_path):
    world, store = begun(tmp_path, 40)
    fill(store)
    drop("vector")(world)
    store = open_table(f"lancedb://{world.database}?table=docs")
    assert store.job() == {"phase": "filling"}
    for refused in (store.facts, store.rows, lambda: store.check(MIGRATION), lambda: store.sample(3, 0, ["id"])):
        with pytest.raises(InputError, match=r"Column 'vector' of .* is gone, .* or clean up"):
            refused()
    store.resume(MIGRATION)
    with pytest.raises(InputError, match="clean up to end the job"):
        store.count_rest()
    with pytest.raises(InputError, match="clean up to end the job"):
        list(store.compare())


def test_the_job_on_another_column_and_columns_and_tags_of_users_stay(tmp_path):
    world = LanceWorld(tmp_path)
    rows = world._rows(range(20), vectors(20))
    rows = rows.append_column("other", vectors_of(vectors(20, D_NEW)))
    rows = rows.append_column("user_state", pa.array(["native"] * 20))
    lance.write_dataset(rows, str(_made(world)))
    world.latest.tags.create("repstitch-mine", 1)
    store = open_table(f"lancedb://{world.database}?table=docs&vector=vector")
    store.begin(MIGRATION, {})
    store.clean_up()
    assert world.latest.to_table().equals(rows)
    assert list(world.latest.tags.list()) == ["repstitch-mine"]
    other = open_table(f"lancedb://{world.database}?table=docs&vector=other")
    other.begin(replace(MIGRATION, new="other_new", old="other_old"), {"a": 1})
    store.begin(MIGRATION, {})
    store.clean_up()
    assert other.job() == {"a": 1}
    assert world.latest.schema.names[-2:] == ["other_new", "other_new_state"]


def _made(world: LanceWorld) -> Path:
    world.database.mkdir()
    return world.path


@pytest.mark.parametrize("n", [0, 5])
def test_a_table_without_vectors_is_refused(tmp_path, n):
    world = LanceWorld(tmp_path)
    lance.write_dataset(world._rows(range(n), np.full((n, 16), np.nan)), str(_made(world)))
    store = open_table(f"lancedb://{world.database}?table=docs")
    assert (store.facts().n_rows, store.facts().n_without_vector) == (n, n)
    assert store.sample(5, 0, ["id"]).num_rows == 0
    with pytest.raises(InputError, match="has no row with a vector in 'vector'; add some first"):
        store.check(MIGRATION)


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64(), pa.int8(), pa.string()])
def test_ids_that_no_row_can_have_select_nothing(tmp_path, kind):
    largest = "18446744073709551615" if kind == pa.uint64() else "127"
    ids = pa.array([1, 10, 100, int(largest)], pa.uint64() if kind == pa.uint64() else pa.int64()).cast(kind)
    lance.write_dataset(pa.table({"id": ids, "vector": vectors_of(vectors(4))}), str(tmp_path / "t.lance"))
    store = open_table(f"lancedb://{tmp_path}?table=t")
    store.begin(MIGRATION, {})
    store.resume(MIGRATION)
    fill(store)
    keys = [str(2**63), str(2**64), "-" + str(2**70), "1_0", " 1", "1.0", "", "x'y", "9" * 5000, "-1", "128", "٣"]
    assert store.take(keys, ["id"]).num_rows == 0
    assert not sum(len(part.ids) for part in store.compare(keys))
    assert store.redo(keys) == 0
    assert store.take(["10", largest, *keys], ["id"])["id"].cast(pa.string()).to_pylist() == ["10", largest]
