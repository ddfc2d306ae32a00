"""Connections to PostgreSQL: SQL with quoted names, COPY, and errors in the words of this program."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, cast

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from repstitch.addresses import Address
from repstitch.errors import InputError, one_line

CONNECT_SECONDS = 10
POOLER_TRIES = 5
LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout")
LOST = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout)


class LockedError(InputError):
    """Others held a lock on the table for longer than the job may wait."""


def quoted(*parts: str) -> sql.Identifier:
    """Return a name, or a name in a schema, in double quotes."""
    return sql.Identifier(*parts)


def raw(text: str) -> sql.SQL:
    """Return SQL from the server's own catalogue, such as the predicate of an index, or a condition of the caller."""
    return sql.SQL(cast(LiteralString, text))


def join(parts: Sequence[sql.Composable], separator: LiteralString = ", ") -> sql.Composed:
    """Return parts of SQL with a separator between them."""
    return sql.SQL(separator).join(parts)


def compose(text: LiteralString, /, **values: Any) -> sql.Composed:
    """Return SQL with `{name}` replaced by values: names and SQL as they are, and all others as quoted literals.

    Nothing is sent as a parameter of the protocol, so a percent sign in a name means nothing.
    """
    return sql.SQL(text).format(
        **{name: value if isinstance(value, sql.Composable) else sql.Literal(value) for name, value in values.items()}
    )


def _connected(address: Address, again: bool) -> psycopg.Connection:
    """Open a connection that commits after each statement, with our settings where nobody has stated others."""
    settings: dict[str, Any] = {}
    with _in_our_words(None, again):
        stated = conninfo_to_dict(address.connection)
        if "service" not in stated and "PGSERVICE" not in os.environ:
            if "application_name" not in stated and "PGAPPNAME" not in os.environ:
                settings["application_name"] = "repstitch"
            if "connect_timeout" not in stated and "PGCONNECT_TIMEOUT" not in os.environ:
                settings["connect_timeout"] = CONNECT_SECONDS
        return psycopg.connect(address.connection, autocommit=True, prepare_threshold=None, **settings)


class Session:
    """A connection that commits after each statement, except inside `transaction`.

    If a server cannot be reached `again`, to which there was a connection before, the error is a ConnectionError.
    """

    def __init__(self, address: Address, again: bool = False):
        self.address, self.connection = address, _connected(address, again)
        self.pid: int = self.value("select pg_backend_pid()")  # a pooler of connections tells the driver another one
        if not again and self.pid != self.connection.info.backend_pid:
            self._check_not_shared()
        self.run("select set_config(name, '0', false) from pg_settings where name = any({limits})", limits=list(LIMITS))
        self.run("set default_transaction_isolation = 'read committed'")

    def _check_not_shared(self) -> None:
        """Raise InputError if a pooler gives the server's process of this connection to others between transactions.

        Another connection that begins a transaction then mostly gets that process, as the one that was last in use.
        """
        with _connected(self.address, False) as other:
            for _ in range(POOLER_TRIES):
                with _in_our_words(other), other.transaction():
                    other.execute("select 1")
                    is_shared = self.value("select pg_backend_pid()") != self.pid
                if is_shared:
                    self.close()
                    raise InputError(
                        "The address must not lead to a pooler that gives each transaction another connection, such as "
                        "PgBouncer in transaction mode: pass the address of the server itself, or of a pooler in "
                        "session mode."
                    )

    def run(self, text: LiteralString | sql.Composed, /, **values: Any) -> list[tuple]:
        """Run a statement and return its rows, if it has any."""
        with _in_our_words(self.connection):
            cursor = self.connection.execute(text if isinstance(text, sql.Composed) else compose(text, **values))
            return cursor.fetchall() if cursor.description else []

    def value(self, text: LiteralString | sql.Composed, /, **values: Any) -> Any:
        """Run a statement and return the first value of its first row, or None if it has no row."""
        rows = self.run(text, **values)
        return rows[0][0] if rows else None

    def count(self, text: LiteralString | sql.Composed, /, **values: Any) -> int:
        """Run a statement and return the number of rows that it wrote."""
        with _in_our_words(self.connection):
            query = text if isinstance(text, sql.Composed) else compose(text, **values)
            return max(self.connection.execute(query).rowcount, 0)

    def oid_of(self, name: sql.Identifier) -> int | None:
        """Return the number of a table, view or index, or None if there is none of this name."""
        return self.value("select to_regclass({name})::oid", name=name.as_string(self.connection))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the statements inside as one transaction, which an exception undoes."""
        with _in_our_words(self.connection), self.connection.transaction():
            yield

    def copy_out(self, query: sql.Composable) -> Iterator[bytes]:
        """Yield the messages of a COPY of a query in binary format."""
        with _in_our_words(self.connection), self.connection.cursor() as cursor:
            statement = compose("copy ({query}) to stdout (format binary)", query=query)
            with cursor.copy(statement) as copy:
                yield from cast(Iterator[bytes], copy)

    def copy_rows(self, query: sql.Composable, types: Sequence[str]) -> Iterator[tuple]:
        """Yield the rows of a COPY of a query in binary format as values of these types of PostgreSQL."""
        with _in_our_words(self.connection), self.connection.cursor() as cursor:
            statement = compose("copy ({query}) to stdout (format binary)", query=query)
            with cursor.copy(statement) as copy:
                copy.set_types(types)
                yield from copy.rows()

    def copy_in(self, target: sql.Composable, content: bytes) -> None:
        """Write rows in binary format to a table."""
        statement = compose("copy {target} from stdin (format binary)", target=target)
        with _in_our_words(self.connection), self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(content)

    def cancel(self) -> None:
        """End the statement that another thread runs over this connection."""
        self.connection.cancel_safe(timeout=CONNECT_SECONDS)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()


@contextmanager
def lock(session: Session, name: str) -> Iterator[bool]:
    """Hold a lock of this database over a connection, with which it ends, and yield whether it was free."""
    key = _lock_key(name)
    is_free = session.value("select pg_try_advisory_lock({key}::bigint)", key=key)
    try:
        yield is_free
    finally:
        with suppress(InputError, ConnectionError):  # the end of the connection does it too
            if is_free:
                session.run("select pg_advisory_unlock({key}::bigint)", key=key)


def check_lock(session: Session, name: str, pid: int) -> None:
    """Raise ConnectionError if the connection of the process `pid` of the server does not hold a lock any more."""
    if not session.value(
        """select exists (select from pg_locks where locktype = 'advisory' and granted and pid = {pid} and objsubid = 1
            and (classid::bigint << 32 | objid::bigint) = {key}::bigint)""",
        pid=pid,
        key=_lock_key(name),
    ):
        raise ConnectionError("The connection that had the right to work on the column was lost.")


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"repstitch {name}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def _in_our_words(connection: psycopg.Connection | None, again: bool = False) -> Iterator[None]:
    """Turn exceptions of the driver into InputError, or into ConnectionError if the connection was lost."""
    try:
        yield
    except errors.LockNotAvailable as error:
        raise LockedError(f"Others are using the table ({one_line(error)}); try again later.") from None
    except (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege) as error:
        raise InputError(
            f"The role must have the right to do this, and the database must accept writes: {one_line(error)}."
        ) from None
    except errors.DiskFull as error:
        raise InputError(f"The disk of the database is full; make room and run again: {one_line(error)}.") from None
    except errors.DependentObjectsStillExist as error:
        others = "; ".join((error.diag.message_detail or one_line(error)).splitlines())
        raise InputError(
            f"Nothing was removed, because others have made things on it ({others}). Drop them, or make them anew on "
            "the new vectors; then clean up again."
        ) from None
    except psycopg.Error as error:
        message = one_line(error)
        if connection is None and not again:
            raise InputError(f"PostgreSQL cannot be reached: {message}") from None
        if connection is None or connection.closed or isinstance(error, LOST):
            raise ConnectionError(f"The connection to PostgreSQL was lost: {message}") from None
        raise InputError(f"PostgreSQL refuses a statement: {message}") from None
