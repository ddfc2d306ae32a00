"""A server that sends any bytes it is given as the response to each request, on real connections."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import numpy as np

JSON = "content-type: application/json\r\n"


class Misbehaving:
    """Answers the i-th request with the bytes that `answer(i)` yields, then closes the connection if `closes`."""

    def __init__(self, answer: Callable[[int], Iterable[bytes]], closes: bool = True):
        self.answer, self.closes = answer, closes
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.requests, self.sent, self.threads = 0, 0, list[threading.Thread]()
        self.stopped = threading.Event()

    def accept(self) -> None:
        while not self.stopped.is_set():
            with suppress(OSError):
                connection, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(connection,)))
                self.threads[-1].start()

    def serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client closes the connection when it has seen enough
            connection.settimeout(20)
            while read_request(connection):
                self.requests += 1
                for chunk in self.answer(self.requests - 1):
                    if self.stopped.is_set():
                        return
                    connection.sendall(chunk)
                    self.sent += len(chunk)
                if self.closes:
                    return


@contextmanager
def misbehaving(answer: Callable[[int], Iterable[bytes]], closes: bool = True) -> Iterator[Misbehaving]:
    """Run such a server, and end its threads at the end of the block."""
    server = Misbehaving(answer, closes)
    accepting = threading.Thread(target=server.accept)
    accepting.start()
    try:
        yield server
    finally:
        server.stopped.set()
        with suppress(OSError):
            socket.create_connection(server.listener.getsockname()).close()  # wakes `accept`
        accepting.join()
        server.listener.close()
        for thread in server.threads:
            thread.join()


def read_request(connection: socket.socket) -> bytes:
    """Return a whole request, or nothing if the client closed the connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(2**16)
        if not chunk:
            return b""
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += connection.recv(2**16)
    return head + b"\r\n\r\n" + body


def head(fields: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}\r\n".encode()


def translation_head(n: int = 3, dim: int = 3, more: str = "") -> bytes:
    """Return the beginning of a response with a translation of `n` rows, without its Content-Length."""
    fields = {
        "content-type": "application/octet-stream",
        "x-rows": n,
        "x-dim": dim,
        "x-stitcher": "old-to-new",
        "x-stitcher-version": "v1",
    }
    return head("".join(f"{name}: {value}\r\n" for name, value in fields.items()) + more)


def numbers(n: int = 3, dim: int = 3) -> bytes:
    return np.ones((n, dim), "<f4").tobytes()


def chunked(chunk: bytes) -> bytes:
    return f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n"
