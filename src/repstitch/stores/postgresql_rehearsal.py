"""A copy of some rows of a table in PostgreSQL, with the same indexes, on which a plan times a job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from repstitch.addresses import Address
from repstitch.stores.postgresql_catalog import KEY_TYPES
from repstitch.stores.postgresql_connection import join, quoted, raw
from repstitch.stores.postgresql_facts import Column
from repstitch.stores.postgresql_rows import Selection, sample

KEY_ROWS = 1000  # ids in one statement


@contextmanager
def copied_table(
    column: Column, selection: Selection, address: Address, n: int, clean_up: Callable[[Address], None]
) -> Iterator[Address]:
    """Yield the address of a copy of n random rows with the same indexes, and drop it at the end.

    `clean_up` removes what a job has made beside the copy. A copy that a killed process has left is replaced.
    """
    session, table = column.session, column.table
    name = f"repstitch_rehearsal_{table.oid}_{column.number}"
    copy = table.in_schema(name)
    ids = sample(session, selection, n, 0, [column.id])[column.id].to_pylist()
    columns = join([quoted(key) for key, field in table.fields.items() if not field.is_generated])
    schema = table.schema.replace('"', '""')
    copied = replace(address, table=f'"{schema}"."{name}"', vector=column.vector, id=column.id, where=None)
    _drop(column, copied, name, clean_up)
    try:
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
        yield copied
    finally:
        _drop(column, copied, name, clean_up)


def _drop(column: Column, copied: Address, name: str, clean_up: Callable[[Address], None]) -> None:
    copy = column.table.in_schema(name)
    if column.session.oid_of(copy):
        clean_up(copied)
        column.session.run("drop table {copy}", copy=copy)
