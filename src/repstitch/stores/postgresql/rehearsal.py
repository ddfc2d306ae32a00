"""A copy of some rows of a table in PostgreSQL, with the same indexes, on which a plan times a job."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from repstitch.addresses import Address
from repstitch.stores.postgresql.catalog import KEY_TYPES
from repstitch.stores.postgresql.connection import join, lock, quoted, raw
from repstitch.stores.postgresql.facts import Column
from repstitch.stores.postgresql.rows import Selection, sample

KEY_ROWS = 1000  # ids in one statement


@contextmanager
def copied_table(
    column: Column, selection: Selection, address: Address, n: int, clean_up: Callable[[Address], None]
) -> Iterator[Address]:
    """Yield the address of a copy of n random rows with the same indexes, and drop it at the end.

    `clean_up` removes what a job has made beside the copy. Copies that killed processes have left are dropped first.
    """
    session, table = column.session, column.table
    drop_copies(column, address, clean_up)
    name = f"{_prefix(column)}{secrets.token_hex(4)}"
    ids = sample(session, selection, n, 0, [column.id])[column.id].to_pylist()
    columns = join([quoted(key) for key, field in table.fields.items() if not field.is_generated])
    with lock(session, name):
        try:
            copy = table.in_schema(name)
            session.run("create table {copy} (like {T} including all excluding comments)", copy=copy, T=table.qualified)
            for at in range(0, len(ids), KEY_ROWS):
                session.run(
                    """insert into {copy} ({columns}) overriding system value select {columns} from {T}
                    where {I} = any({ids}::{kind}[])""",
                    copy=copy,
                    columns=columns,
                    T=table.qualified,
                    I=quoted(column.id),
                    ids=[str(key) for key in ids[at : at + KEY_ROWS]],
                    kind=raw(KEY_TYPES[table.fields[column.id].type]),
                )
            session.run("analyze {copy}", copy=copy)
            yield _address(column, address, name)
        finally:
            _drop(column, address, name, clean_up)


def drop_copies(column: Column, address: Address, clean_up: Callable[[Address], None]) -> None:
    """Drop the copies that killed processes have left."""
    names = column.session.run(
        """select relname from pg_class where starts_with(relname, {prefix}) and relkind = 'r'
        and relnamespace = (select relnamespace from pg_class where oid = {oid})""",
        prefix=_prefix(column),
        oid=column.table.oid,
    )
    for (name,) in names:
        if len(name) == len(_prefix(column)) + 8:  # not a side table of a copy
            with lock(column.session, name) as is_free:
                if is_free:
                    _drop(column, address, name, clean_up)


def _prefix(column: Column) -> str:
    """Return what the names of all copies begin with."""
    return f"repstitch_rehearsal_{column.table.oid}_"


def _address(column: Column, address: Address, name: str) -> Address:
    schema = column.table.schema.replace('"', '""')
    return replace(address, table=f'"{schema}"."{name}"', vector=column.vector, id=column.id, where=None)


def _drop(column: Column, address: Address, name: str, clean_up: Callable[[Address], None]) -> None:
    copy = column.table.in_schema(name)
    if column.session.oid_of(copy):
        clean_up(_address(column, address, name))
        column.session.run("drop table if exists {copy}", copy=copy)
