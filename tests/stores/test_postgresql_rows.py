"""Reading a table: whole at one moment, some rows at random, some rows by id."""

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.postgresql_jobs import open_table
from helpers.postgresql_rows import vectors
from helpers.postgresql_world import PostgresColumnWorld, literal

from repstitch.errors import InputError


def world_with(n: int, *statements: str) -> PostgresColumnWorld:
    world = PostgresColumnWorld(Path())
    X = vectors(n)
    X[1] = np.nan
    world.create(range(n), X)
    for statement in statements:
        world.run(statement)
    return world


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.array([np.full(64, np.nan) if row is None else row for row in column.to_pylist()], np.float32)


def test_rows_are_read_with_their_types_and_without_loss():
    world = world_with(
        300,
        "alter table docs add s smallint default 3, add f real default .5, add d float8, add b bool default true, "
        "add x bytea default 'ab', add t timestamptz default '2026-01-01 00:00+00', add j jsonb default '[1]', "
        "add other vector(2) default '[1,2]', add h halfvec(2)",
    )
    rows = open_table(world.uri, vector="vector").rows()
    types = {field.name: field.type for field in rows.schema}
    assert types["vector"] == pa.list_(pa.float32(), 64)
    assert types["h"] == pa.list_(pa.float16(), 2)
    assert [types[name] for name in ("id", "body", "s", "f", "d", "b", "x", "t", "j")] == [
        pa.int64(), pa.string(), pa.int16(), pa.float32(), pa.float64(), pa.bool_(), pa.binary(), pa.string(),
        pa.string(),
    ]  # fmt: skip
    assert rows.count_rows() == 300
    table = pa.Table.from_batches(list(rows.to_batches()), rows.schema)
    X = vectors(300)
    X[1] = np.nan
    for read in (table, pa.Table.from_batches(list(rows.to_batches(columns=["vector", "id"])))):
        order = np.argsort(read["id"].to_numpy())
        np.testing.assert_array_equal(matrix(read["vector"])[order], X)
    first = rows.head(1, columns=["s", "f", "d", "b", "x", "j", "other", "h"]).to_pylist()[0]
    assert first == {"s": 3, "f": 0.5, "d": None, "b": True, "x": b"ab", "j": "[1]", "other": [1, 2], "h": None}
    assert next(iter(rows.get_fragments())).count_rows() == 300
    with pytest.raises(InputError, match="must have the column 'none'"):
        rows.head(1, columns=["none"])


def test_rows_are_those_of_one_moment_though_others_write_and_a_reader_stops_early():
    world = world_with(50)
    rows = open_table(world.uri).rows()
    world.delete(range(10))
    next(iter(rows.to_batches()))
    assert rows.count_rows() == 50
    assert sum(batch.num_rows for batch in rows.to_batches(columns=["id"])) == 50
    assert open_table(world.uri).rows().count_rows() == 40
    rows.close()


def test_a_condition_selects_rows():
    store = open_table(world_with(50).uri, where="lang='de' and body like 'body%25'".replace(" ", "%20"))
    assert store.rows().count_rows() == 25
    assert set(store.sample(100, 0, ["lang"])["lang"].to_pylist()) == {"de"}
    assert store.take(["2", "3"], ["id"])["id"].to_pylist() == [3]


@pytest.mark.parametrize("kind", ["uuid", "text", "varchar(40)", "integer"])
def test_ids_of_each_type_are_read_and_looked_up(kind):
    world = world_with(5)
    key = "id::int" if kind == "integer" else "md5(id::text)::uuid"
    world.run(f"create table keyed as select ({key})::{kind} as key, vector from docs")
    world.run("alter table keyed add primary key (key)")
    store = open_table(world.uri, table="keyed")
    assert store.id == "key"
    table = store.rows().head(9, columns=["key", "vector"])
    assert table.schema.field("key").type == (pa.int32() if kind == "integer" else pa.string())
    texts = [str(value) for value in table["key"].to_pylist()]
    if kind == "uuid":
        assert all(str(uuid.UUID(text)) == text for text in texts)
    found_again = store.take([*texts[:2], "no such id", "99999999999999999999"], ["key"])["key"].to_pylist()
    assert sorted(map(str, found_again)) == sorted(texts[:2])


@pytest.mark.parametrize(
    ("kind", "key", "others"),
    [
        ("uuid", str(uuid.UUID(int=255)), ["urn:uuid:{}", "{{{}}}"]),
        ("bigint", "10", ["1_0", " 10", "+10", "010", "\u0661\u0660", "9223372036854775808"]),
        ("bigint", "-9223372036854775808", ["-9223372036854775809", "-0"]),
        ("text", "10", ["1\0", "\ud800"]),
    ],
)
def test_only_the_text_of_an_id_as_the_store_writes_it_finds_the_row(kind, key, others):
    world = world_with(2)
    world.run(f"create table keyed as select '{key}'::{kind} as key, vector from docs where id = 0")
    world.run("alter table keyed add primary key (key)")
    store = open_table(world.uri, table="keyed")
    texts = [other.format(key) for other in others]
    if kind == "uuid":
        texts += [key.upper(), key.replace("-", "")]
    assert store.take(texts, ["key"]).num_rows == 0
    assert store.take([key, *texts], ["key"]).num_rows == 1


def test_a_sample_gives_each_row_the_same_chance_and_leaves_out_rows_without_a_vector(monkeypatch):
    monkeypatch.setattr("repstitch.stores.postgresql.rows.FEW_BLOCKS", 5)
    world = world_with(600, "delete from docs where id % 3 = 2", "update docs set n = 1 where id < 100")
    store = open_table(world.uri)
    counts = np.zeros(600)
    for seed in range(30):
        ids = store.sample(20, seed, ["id", "vector"])["id"].to_numpy()
        assert len(set(ids)) == 20
        counts[ids] += 1
    present = (np.arange(600) % 3 != 2) & (np.arange(600) != 1)
    assert not counts[~present].any()
    expected = 30 * 20 / present.sum()
    assert abs(counts[:100][present[:100]].mean() / expected - 1) < 0.3
    assert ((counts[present] - expected) ** 2 / expected).sum() < 1.3 * present.sum()
    assert store.sample(20, 7, ["id"]).equals(store.sample(20, 7, ["id"]))
    assert len(store.sample(10_000, 0, ["id"])) == present.sum()


def test_a_view_and_a_column_without_stated_dimensions_are_read():
    world = world_with(20, "create view v as select id, vector::vector as vector, body from docs")
    store = open_table(world.uri, table="v")
    assert store.rows().schema.field("vector").type == pa.list_(pa.float32(), 64)
    assert len(store.sample(5, 0, ["id"])) == 5
    world.run("drop view v")
    world.run("alter table docs alter column vector type vector using vector::vector")
    world.run("update docs set vector = %s where id = 3", literal(np.ones(3)))
    for columns in (["id", "vector"], ["body", "vector"]):
        with pytest.raises(InputError, match="vectors of several dimensions"):
            list(open_table(world.uri).rows().to_batches(columns=columns))
    world.run("update docs set vector = null")
    with pytest.raises(InputError, match="has no vectors; at least one row must have one"):
        open_table(world.uri).rows()
