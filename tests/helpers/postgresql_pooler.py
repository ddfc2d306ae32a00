"""A pooler of connections to PostgreSQL, such as PgBouncer: its clients get connections that it has opened itself.

It tells clients another process number than the server's. In transaction mode a connection goes back after each
transaction, and the one that came back last is given out first.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SOCKET = ".s.PGSQL.5432"
STARTUP = 196608  # version 3.0 of the protocol
PROCESS = struct.pack("!cIii", b"K", 12, 7, 7)  # the number and the key that clients are told


def read(connection: socket.socket, n: int) -> bytes:
    """Return the next n bytes. Raises ConnectionError at the end."""
    content = b""
    while len(content) < n:
        part = connection.recv(n - len(content))
        if not part:
            raise ConnectionError
        content += part
    return content


def read_message(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the type of a message and the whole message."""
    head = read(connection, 5)
    return head[:1], head + read(connection, struct.unpack("!I", head[1:])[0] - 4)


class Pooler:
    """The server connections that are free, and a thread for each client."""

    def __init__(self, uri: str, by_transaction: bool, place: Path):
        parts = urlsplit(uri)
        self.server = str(Path(parse_qs(parts.query)["host"][0]) / SOCKET)
        self.database, self.by_transaction = parts.path[1:], by_transaction
        self.free: list[socket.socket] = []
        self.greeting = b""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(place / SOCKET))
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _connected(self) -> socket.socket:
        """Return a free connection to the server, or a new one, whose greeting the clients get too."""
        if self.free:
            return self.free.pop()
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.server)
        names = f"user\0postgres\0database\0{self.database}\0\0".encode()
        server.sendall(struct.pack("!II", 8 + len(names), STARTUP) + names)
        greeting, kind = b"", b""
        while kind != b"Z":
            kind, message = read_message(server)
            greeting += PROCESS if kind == b"K" else message
        self.greeting = greeting
        return server

    def _serve(self, client: socket.socket) -> None:
        """Pass the messages of a client on, to a server connection that it has for a transaction, or until it ends."""
        server, is_query = None, False
        with suppress(OSError), client:
            read(client, struct.unpack("!I", read(client, 4))[0] - 4)
            self.free.append(self._connected())
            client.sendall(self.greeting)
            while True:
                kind, message = read_message(client)
                if kind == b"X":
                    break
                server = server or self._connected()
                server.sendall(message)
                is_query = is_query or kind == b"Q"
                if kind in b"QS" or (kind in b"cf" and is_query):
                    status = self._answer(client, server)
                    is_query = is_query and status == b"G"  # the client copies rows in
                    if self.by_transaction and status == b"I":
                        self.free.append(server)
                        server = None
        if server is not None:
            server.close()

    @staticmethod
    def _answer(client: socket.socket, server: socket.socket) -> bytes:
        """Pass the server's messages on until it waits for the client, and return its status."""
        while True:
            kind, message = read_message(server)
            client.sendall(message)
            if kind in b"GZ":
                return message[5:6] if kind == b"Z" else kind


@contextmanager
def pooled(uri: str, by_transaction: bool, place: Path) -> Iterator[str]:
    """Yield the address of a pooler in front of the database at `uri`, in a short folder."""
    pooler = Pooler(uri, by_transaction, place)
    try:
        yield f"postgresql://postgres@/{pooler.database}?host={place}"
    finally:
        pooler.listener.close()
