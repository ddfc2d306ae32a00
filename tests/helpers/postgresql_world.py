"""A table in PostgreSQL, its writers and its readers, for the tests that run on all stores."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psycopg

from helpers.lance_world import metric_of
from helpers.postgresql_server import address, new_database

VIEW = "docs_current"


def literal(vector: np.ndarray | None) -> str | None:
    """Return a vector as pgvector's text."""
    return None if vector is None or np.isnan(vector).any() else "[" + ",".join(map(repr, vector.tolist())) + "]"


def parsed(text: str | None) -> np.ndarray | None:
    """Return pgvector's text as a vector."""
    return None if text is None else np.array(text[1:-1].split(","), np.float32)


class PostgresColumnWorld:
    """A table whose new vectors go to a second column."""

    name = "postgresql column"
    writes: ClassVar[int] = 20  # of each application between two steps of a job
    pause: ClassVar[float] = 0.005  # seconds between two writes of an application
    options: ClassVar[dict[str, Any]] = {"layout": "column"}  # of the migration

    def __init__(self, place: Path | str):
        """Make a database, whatever folder is named, or use that at the address `place`."""
        self.uri = place if isinstance(place, str) else new_database()
        self._connections: dict[int, psycopg.Connection] = {}

    @property
    def connection(self) -> psycopg.Connection:
        """The connection of this thread."""
        thread = threading.get_ident()
        if thread not in self._connections:
            self._connections[thread] = psycopg.connect(self.uri, autocommit=True)
        return self._connections[thread]

    def run(self, text: str, *values: Any) -> list[tuple]:
        cursor = self.connection.execute(text.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def create(
        self, ids: Sequence[int], vectors: np.ndarray, *, index: bool | str = False, lang: Sequence[str] | None = None
    ) -> str:
        self.run(
            "create table docs(id bigint primary key, body text, lang text, n int not null default 0, "
            f"vector vector({vectors.shape[1]}))"
        )
        self.insert(ids, vectors, lang)
        if index:
            family = {"cosine": "vector_cosine_ops", "l2": "vector_l2_ops", "dot": "vector_ip_ops"}[metric_of(index)]
            self.run(f"create index docs_vector_idx on docs using hnsw (vector {family}) with (m = 8)")
        self.run("analyze docs")
        return address(self.uri, table="docs", vector="vector", id="id")

    def insert(self, ids: Sequence[int], vectors: np.ndarray, lang: Sequence[str] | None = None) -> None:
        languages = lang if lang is not None else ["de" if i % 2 else "en" for i in ids]
        with self.connection.cursor().copy("copy docs(id, body, lang, vector) from stdin") as copy:
            for key, language, vector in zip(ids, languages, vectors, strict=True):
                copy.write_row((int(key), f"body {key}", language, literal(vector)))

    def update(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        for key, vector in zip(ids, vectors, strict=True):
            self.run("update docs set vector = %s where id = %s", literal(vector), int(key))

    def touch(self, ids: Sequence[int]) -> None:
        self.run("update docs set n = n + 1 where id = any(%s)", list(map(int, ids)))

    def delete(self, ids: Sequence[int]) -> None:
        self.run("delete from docs where id = any(%s)", list(map(int, ids)))

    def dual(self, ids: Sequence[int], old: np.ndarray, new: np.ndarray, new_name: str = "vector_new") -> None:
        for key, first, second in zip(ids, old, new, strict=True):
            self.run(
                f"update docs set vector = %s, {new_name} = %s where id = %s", literal(first), literal(second), int(key)
            )

    def corrupt(self, key: int, vector: np.ndarray) -> None:
        """Change a new vector behind the back of the job, whose triggers are off meanwhile."""
        table, column = ("docs_vector_new", "vector") if self.options.get("view") else ("docs", "vector_new")
        triggers = self.run(f"select tgname from pg_trigger where tgrelid = '{table}'::regclass and not tgisinternal")
        self.run(f"alter table {table} disable trigger user")
        self.run(f"update {table} set {column} = %s where id = %s", literal(vector), key)
        for (name,) in triggers:
            self.run(f'alter table {table} enable always trigger "{name}"')

    def read(self) -> dict[int, tuple[str, np.ndarray | None]]:
        return self._read(self.relation)

    def dims_of_some(self) -> set[int]:
        """Return the lengths of the vectors of some rows, as one statement sees them."""
        relation = self.relation
        with psycopg.connect(self.uri) as reader:
            rows = reader.execute(f"select vector::text from {relation} where vector is not null limit 20".encode())
            return {vector.count(",") + 1 for (vector,) in rows.fetchall()}

    @property
    def relation(self) -> str:
        """What readers read: the table, or the view if there is one."""
        return VIEW if self.options.get("view") and self.run(f"select to_regclass('{VIEW}')")[0][0] else "docs"

    def _read(self, relation: str) -> dict[int, tuple[str, np.ndarray | None]]:
        with psycopg.connect(self.uri) as reader:
            rows = reader.execute(f"select id, body, vector::text from {relation}".encode()).fetchall()
        return {key: (body, parsed(vector)) for key, body, vector in rows}

    def column(self, name: str) -> dict[int, np.ndarray | None]:
        return {key: parsed(vector) for key, vector in self.run(f"select id, {name}::text from docs")}

    def schema(self) -> object:
        return [self.run(query) for query in SCHEMA]

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class PostgresSideWorld(PostgresColumnWorld):
    """A table whose new vectors go to a side table, and whose readers read through a view."""

    name = "postgresql side table"
    options: ClassVar[dict[str, Any]] = {"layout": "side", "view": VIEW}

    def is_live(self) -> bool:
        """Return whether the view shows the new vectors."""
        return "docs_vector_new" in (self.run(f"select coalesce(pg_get_viewdef(to_regclass('{VIEW}')), '')")[0][0])

    def insert(self, ids: Sequence[int], vectors: np.ndarray, lang: Sequence[str] | None = None) -> None:
        if not self.is_live():
            super().insert(ids, vectors, lang)
            return
        for key, vector in zip(ids, vectors, strict=True):
            with self.connection.transaction():
                self.run("insert into docs(id, body, lang) values (%s, %s, 'en')", int(key), f"body {key}")
                self._write_new(key, vector)

    def update(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        if not self.is_live():
            super().update(ids, vectors)
            return
        for key, vector in zip(ids, vectors, strict=True):
            self._write_new(key, vector)

    def _write_new(self, key: int, vector: np.ndarray) -> None:
        self.run(
            "insert into docs_vector_new(id, vector) select id, %s from docs where id = %s "
            "on conflict (id) do update set vector = excluded.vector",
            literal(vector),
            int(key),
        )

    def dual(self, ids: Sequence[int], old: np.ndarray, new: np.ndarray, new_name: str = "vector_new") -> None:
        for key, first, second in zip(ids, old, new, strict=True):
            with self.connection.transaction():
                self.run("update docs set vector = %s where id = %s", literal(first), int(key))
                self._write_new(key, second)

    def column(self, name: str) -> dict[int, np.ndarray | None]:
        if name != "vector_new":
            return super().column(name)
        rows = self.run("select d.id, s.vector::text from docs d left join docs_vector_new s on s.id = d.id")
        return {key: parsed(vector) for key, vector in rows}


OURS = "relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)"
SCHEMA = (
    "select c.oid::regclass::text, c.relkind, c.relacl::text, obj_description(c.oid, 'pg_class'), "
    f"pg_get_viewdef(c.oid) from pg_class c where {OURS} and c.relpersistence <> 't' order by 1",
    "select attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull, attacl::text, "
    f"col_description(attrelid, attnum) from pg_attribute a join pg_class c on c.oid = attrelid where {OURS} "
    "and attnum > 0 and not attisdropped and c.relpersistence <> 't' order by 1, attnum",
    f"select pg_get_indexdef(indexrelid), indisvalid from pg_index i join pg_class c on c.oid = indrelid where {OURS} "
    "and c.relpersistence <> 't' order by 1",
    "select pg_get_triggerdef(t.oid), tgenabled from pg_trigger t where not tgisinternal order by 1",
    "select conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated from pg_constraint "
    "where connamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) order by 1, 2",
    "select p.oid::regprocedure::text from pg_proc p where pronamespace not in ('pg_catalog'::regnamespace, "
    "'information_schema'::regnamespace) and not exists (select from pg_depend d where d.objid = p.oid "
    "and d.deptype = 'e') order by 1",
)
