"""What a table, a role or an address must be, and the sentences that say so."""

from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import psycopg
import pytest
from helpers.postgresql_jobs import JOB, WORLDS, catch_up, faults, fill, finished, made, migration, open_table
from helpers.postgresql_rows import D_NEW, translate, vectors
from helpers.postgresql_server import new_database
from helpers.postgresql_world import PostgresColumnWorld

from repstitch.errors import InputError


def world_with(*statements: str, index: bool = False) -> PostgresColumnWorld:
    """Return a world with 20 rows after some statements."""
    world = PostgresColumnWorld(Path())
    world.create(range(20), vectors(20), index=index)
    for statement in statements:
        world.run(statement)
    return world


def refused(world: PostgresColumnWorld, match: str, moved=None, **own: str) -> None:
    store = open_table(world.uri, **own)
    before = world.schema()
    moved = moved or migration()
    with pytest.raises(InputError, match=match):
        store.check(moved)
    with pytest.raises(InputError, match=match):
        store.begin(moved, JOB)
    assert world.schema() == before
    store.close()


@pytest.mark.parametrize(
    ("statements", "own", "match"),
    [
        ([], {"table": "doc"}, "must have the table doc; tables with vectors are docs"),
        ([], {"vector": "vectors"}, r"must have the column 'vectors'; it has id, .* Did you mean 'vector'\?"),
        ([], {"vector": "body"}, r"Column 'body' of public\.docs must be vector or halfvec; got text"),
        ([], {"id": "ids"}, "must have the column 'ids'"),
        ([], {"id": "vector"}, "must be bigint, integer, text, varchar or uuid; got vector"),
        (["alter table docs drop constraint docs_pkey"], {}, "it has no primary key. Add &id=COLUMN to the address"),
        (
            ["alter table docs drop constraint docs_pkey, add primary key (id, n)"],
            {},
            r"it has the primary key \(id, n\). Add &id=COLUMN to the address",
        ),
        (["alter table docs add other vector(3)"], {}, "has the columns of vectors vector, other; add &vector=COLUMN"),
        (["alter table docs drop column vector"], {}, "has no column of vectors; there is no table with vectors"),
        (
            ["alter table docs drop column vector", *(f"create table t{n}(v vector(2))" for n in range(30))],
            {},
            r"has no column of vectors; tables with vectors are t0, t1, .* and 10 more\.",
        ),
        (
            [f"create table d{n:02}(v vector(2))" for n in range(25)],
            {"table": "doc"},
            r"tables with vectors are d00, .* and 6 more\. Did you mean 'docs'\?",
        ),
        ([f"alter table docs add c{n} int" for n in range(20)], {"vector": "x"}, r"it has id, .* and 5 more\."),
    ],
)
def test_an_address_that_does_not_name_rows_is_refused(statements, own, match):
    with pytest.raises(InputError, match=match):
        open_table(world_with(*statements).uri, **own)


def test_a_database_without_pgvector_or_a_server_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="must have the extension pgvector: run `create extension vector`"):
        open_table(new_database(extension=None))
    with pytest.raises(InputError, match="PostgreSQL cannot be reached"):
        open_table("postgresql://127.0.0.1:1/none")


def test_no_message_repeats_a_password():
    with pytest.raises(InputError) as refusal:
        open_table("postgresql://some:s3cr%25t@127.0.0.1:1/none", bad="s3cr%25t")
    assert "s3cr" not in str(refusal.value)


@pytest.mark.parametrize(
    ("statements", "moved", "own", "match"),
    [
        ([], migration(), {"where": "n=1"}, "leave `where` out of the address"),
        ([], migration(layout="rows"), {}, "`layout` must be column or side; got 'rows'"),
        ([], migration(dim=20_000), {}, "has at most 16,000 dimensions; got 20,000"),
        ([], migration(new="body"), {}, "must not have the column 'body' yet"),
        (["alter table docs add vector_old int"], migration(), {}, "must not have the column 'vector_old' yet"),
        (["alter table docs add vector_new_state int"], migration(), {}, "must not have the column 'vector_new_state'"),
        (
            ["create table docs_vector_new(id int)"],
            migration(layout="side", keep_names=True),
            {},
            "must not have the table 'docs_vector_new' yet",
        ),
        (["create view shown as select id, vector from docs"], migration(), {}, r"public\.shown would go on showing"),
        (["create table v(id int)"], migration(view="v"), {}, r"public\.v exists and is not a view of this job"),
        (["alter table docs enable row level security"], migration(view="v"), {}, "which a view would not keep"),
        (
            ["alter table docs enable row level security"],
            migration(layout="side", keep_names=True),
            {},
            "which a side table would not keep",
        ),
        (["create table child() inherits (docs)"], migration(), {}, "has child tables"),
        (["alter table docs add key int"], migration(), {"id": "key"}, "must be unique and not null"),
        (["alter table docs add key int unique"], migration(), {"id": "key"}, "must be unique and not null"),
        (
            ["alter table docs add key int not null default 0", "create unique index on docs(key) where n > 0"],
            migration(),
            {"id": "key"},
            "must be unique and not null",
        ),
        (["create view v as select * from docs"], migration(), {"table": "v"}, r"public\.v is a view, and a migration"),
        (["update docs set vector = null"], migration(), {}, "has no vectors|must have"),
    ],
)
def test_a_column_that_cannot_be_moved_so_is_refused_before_anything_is_written(statements, moved, own, match):
    if "update" in " ".join(statements):
        statements = [*statements, "alter table docs alter column vector type vector using vector::vector"]
    refused(world_with(*statements), match, moved, **({"vector": "vector"} | own))


def test_an_indexed_column_needs_a_view_or_kept_names_or_the_slower_layout():
    world = world_with(index=True)
    refused(world, r"name a view .* \(`view`\), or keep the names \(`keep_names`\) .* Layout column swaps names")
    store = open_table(world.uri)
    assert store.facts().layout == "side table"
    for moved in (migration(view="v"), migration(keep_names=True), migration(layout="column")):
        store.check(moved)
    world.run("drop index docs_vector_idx")
    world.run("create index on docs using hnsw (vector vector_l2_ops) where n = 0")
    assert store.facts().layout == "column"
    refused(world, "partial index cannot be copied to a side table", migration(layout="side", keep_names=True))


def test_partitioned_tables_and_partitions_are_refused_but_can_be_read():
    world = world_with(
        "create table parts(id bigint primary key, vector vector(64)) partition by range (id)",
        "create table part_1 partition of parts for values from (0) to (100)",
        "insert into parts select id, vector from docs",
    )
    refused(world, "is a partitioned table, and a migration needs a plain table", table="parts")
    refused(world, "is a partition, and a migration needs a plain table: detach it", table="part_1")
    assert open_table(world.uri, table="parts").rows().count_rows() == 20
    assert len(open_table(world.uri, table="parts").sample(5, 0, ["id", "vector"])) == 5


def as_role(world: PostgresColumnWorld, role: str, *grants: str, options: str = "") -> str:
    """Return the address of a database for a role that may read the table."""
    with psycopg.connect(world.uri, autocommit=True) as connection:
        connection.execute(f"drop role if exists {role}".encode())
        connection.execute(f"create role {role} login".encode())
        for grant in ("grant select on docs to {}", *grants):
            connection.execute(grant.format(role).encode())
    uri = urlsplit(world.uri)
    return uri._replace(netloc=f"{role}@", query=uri.query + (f"&options={quote(options)}" if options else "")).geturl()


def test_a_role_without_rights_can_read_and_is_refused_for_a_migration():
    world = world_with()
    store = open_table(as_role(world, "only_reads"))
    assert store.rows().count_rows() == 20
    with pytest.raises(InputError, match=r"The role 'only_reads' must own public\.docs to add columns and triggers"):
        store.check(migration())
    store.close()
    uri = as_role(world, "owns", "alter table docs owner to {}")
    with pytest.raises(InputError, match="must have the right to create in the schema 'public'"):
        open_table(uri).check(migration())
    world.run("grant create on schema public to owns")
    world.run(
        "create trigger t before update on docs for each row execute function suppress_redundant_updates_trigger()"
    )
    store = open_table(uri)
    assert any("trigger t fires at each row that the job fills" in sentence for sentence in store.facts().dependents)
    world.run("drop trigger t on docs")
    finished(store, migration())
    assert not faults(store)
    store.cut_over(translate, JOB, 1000, 2.0)
    store.clean_up()
    world.run("drop table docs cascade")


def test_a_read_only_connection_is_refused_for_a_migration():
    world = world_with()
    store = open_table(world.uri, options="-c%20default_transaction_read_only%3Don")
    assert store.rows().count_rows() == 20
    with pytest.raises(InputError, match="must accept writes, but this connection is read-only"):
        store.check(migration())


@pytest.mark.parametrize("layout", WORLDS)
def test_names_that_need_quoting_work(layout):
    uri = new_database(extension='"Ext %s"')
    table, vector, key = 'My "Docs" %s', "The Vector %d", "order"
    with psycopg.connect(uri, autocommit=True) as connection:
        run = lambda text: connection.execute(text.encode())  # noqa: E731
        run('create schema "S.1"')
        run(
            f'create table "S.1"."My ""Docs"" %s"("{key}" text primary key, "a{{b}}" int default 1, '
            f'"{vector}" "Ext %s".vector(64) not null)'
        )
        run(
            'insert into "S.1"."My ""Docs"" %s" select \'k \' || i, i, (select array_agg(random()) from '
            'generate_series(1, 64) where i > 0)::"Ext %s".vector(64) from generate_series(1, 30) g(i)'
        )
        run(f'create index "Idx" on "S.1"."My ""Docs"" %s" using hnsw ("{vector}" "Ext %s".vector_ip_ops)')
    named = quote('"S.1"."' + table.replace('"', '""') + '"')
    store = open_table(uri, table=named, vector=quote(vector))
    view = "View %s" if layout == "side" else None
    moved = migration(layout=layout, view=view, new="New {0} %", old='Old "x"')
    store.check(moved)
    with store.rehearsal(5) as copy:
        assert copy.facts().n_rows == 5
    finished(store, moved)
    with psycopg.connect(uri, autocommit=True) as writer:  # without the extension in its search path
        writer.execute(
            f'update "S.1"."My ""Docs"" %s" set "{vector}" = "{vector}" operator("Ext %s".*) "{vector}" '
            f"where \"{key}\" = 'k 3'".encode()
        )
        writer.execute(f'delete from "S.1"."My ""Docs"" %s" where "{key}" = \'k 4\''.encode())
    catch_up(store)
    parts = list(store.compare())
    assert sum(len(part.ids) for part in parts) == 29
    assert all(np.allclose(translate(part.old), part.new, atol=1e-4) for part in parts)
    store.index(lambda share: None)
    assert len(store.search(vectors(1), 3, "old").ids[0]) == 3
    store.cut_over(translate, {"guard": True}, 1000, 2.0)
    store.roll_back(JOB, 2.0)
    assert len(store.sample(5, 0, [key, vector])) == 5
    assert store.take(["k 5", "k'6"], [key]).column(0).to_pylist() == ["k 5"]
    store.clean_up()
    assert store.job() is None


@pytest.mark.slow
def test_a_table_of_1_500_columns_is_moved():
    columns = ", ".join(f"add column c{n} int" for n in range(1500))
    world = world_with(f"alter table docs {columns}")
    store = open_table(world.uri)
    assert store.rows().head(2).num_columns == 1505
    finished(store, migration())
    store.cut_over(translate, JOB, 1000, 2.0)
    vector = world.read()[0][1]
    assert vector is not None
    assert len(vector) == D_NEW
    store.clean_up()


def test_the_address_may_leave_out_the_column_while_a_job_runs():
    _, store, moved = made(WORLDS["column"], 20)
    store.begin(moved, JOB)
    uri = store.address.connection
    assert open_table(uri).vector == "vector"
    fill(store)
    catch_up(store)
    store.cut_over(translate, JOB, 1000, 2.0)
    assert open_table(uri).vector == "vector"
    with pytest.raises(InputError, match="There is no job on column 'vector_old'"):
        open_table(uri, vector="vector_old").resume(moved)


def test_facts_name_all_that_depends_on_the_column():
    world = world_with(
        "create view v as select vector from docs",
        "create materialized view m as select vector from docs",
        "alter table docs add norm float8 generated always as (vector_norm(vector)) stored",
        "create policy p on docs using (vector_dims(vector) > 1)",
        "create publication pub for table docs",
        "alter table docs add constraint checked check (vector_dims(vector) = 64 and body <> '')",
        "alter table docs alter vector set default '[1]'",
        "comment on column docs.vector is 'embedding of the body'",
        "create index docs_covering on docs(id) include (vector)",
        "create index docs_norm on docs(vector_norm(vector))",
        "grant select (vector) on docs to pg_monitor",
        "create function f() returns trigger language plpgsql as 'begin return new; end'",
        "create trigger t after update of vector on docs for each row execute function f()",
        "create rule r as on update to docs where new.vector is null do also nothing",
        "create index e on docs using hnsw ((vector::halfvec(64)) halfvec_l2_ops)",
    )
    sentences = " ".join(open_table(world.uri).facts().dependents)
    for part in (
        "view public.v ",
        "materialised view public.m ",
        "column norm ",
        "policy p ",
        "publication pub ",
        "constraint checked on body, vector stays with the old column, and the clean-up drops it",
        "the default '[1]'::vector has the dimensions of the old column",
        "the comment of the column goes with the old vectors",
        "index docs_covering contains the column",
        "index docs_norm contains the column",
        "only in the layout `column`: public.docs has two more columns",
        "only with a swap of names: prepared statements",
        "the clean-up waits until it is dropped or made anew",
        "role pg_monitor ",
        "trigger t ",
        "rule r ",
        "index e ",
    ):
        assert part in sentences
    facts = open_table(world.uri).facts()
    assert facts.table_bytes > 0
    assert facts.index_bytes > 0
    assert facts.free_bytes
    assert set(open_table(world.uri).peak_bytes(migration(), facts)) >= {"new vectors", "write-ahead log"}
