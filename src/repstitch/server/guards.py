"""What the service lets in: its settings, and the limits on bytes, rows, requests at once and time."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from starlette.types import Receive

from repstitch.errors import InputError
from repstitch.registry import DEFAULT_FOLDER, Registry

DEVICES = ("auto", "cpu", "cuda")


class Refusal(Exception):
    """A request that is answered with an error: its HTTP status, one line, and the parameter at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})


@dataclass(frozen=True)
class Settings:
    """How one service runs; each field is read from `REPSTITCH_` and its name in capitals.

    `stitchers` is the folder served from; `device` is where maps run ("auto" takes CUDA when there is one); limits are
    for one process: the bytes and rows of a request, the translations at once, and the seconds one may take. The
    folder is looked at every `reload_s` seconds.
    """

    stitchers: Path = Path(DEFAULT_FOLDER)
    device: str = "auto"
    workers: int = 1
    max_body_bytes: int = 64 * 2**20
    max_rows: int = 16_384
    max_concurrency: int = 128
    timeout_s: float = 30.0
    reload_s: float = 2.0

    def __post_init__(self):
        if self.device not in DEVICES:
            raise InputError(f"{_called('device')} must be one of {', '.join(DEVICES)}; got {self.device!r}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise InputError(f"{_called(field.name)} must be a whole number of at least 1; got {value!r}.")
            if field.type is float and not (math.isfinite(value) and value > 0):
                raise InputError(f"{_called(field.name)} must be a number of seconds above 0; got {value!r}.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that the environment states; what it leaves out, or leaves empty, keeps its default."""
        stated: dict[str, Any] = {}
        for field in fields(cls):
            text = environ.get(_variable(field.name), "").strip()
            if text:
                stated[field.name] = _parse(field.name, field.type, text)
        # Absolute, because BentoML changes the working folder between importing a service and running it.
        stated["stitchers"] = stated.get("stitchers", Path(DEFAULT_FOLDER)).absolute()
        return cls(**stated)

    def to_env(self) -> dict[str, str]:
        """The variables that `from_env` reads these settings back from."""
        return {_variable(field.name): str(getattr(self, field.name)) for field in fields(self)}


def open_registry(settings: Settings) -> Registry:
    """The registry of the settings' folder, not yet read, on the device that "auto" stands for here."""
    return Registry(settings.stitchers, device=choose_device(settings))


def choose_device(settings: Settings) -> str:
    """Where maps run: "cpu" or "cuda"; InputError when CUDA is asked for and not there, or shared by workers."""
    import torch

    there = settings.device != "cpu" and torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise InputError(f"{_called('device')} is cuda, but torch finds no CUDA device; use auto or cpu.")
    if there and settings.workers > 1:
        raise InputError(
            f"{_called('workers')} must be 1 on CUDA, where one process keeps the device busy; got {settings.workers}. "
            f"Set it to 1, or {_called('device')} to cpu."
        )
    return "cuda" if there else "cpu"


async def read_body(receive: Receive, length: bytes | None, limit: int) -> bytearray:
    """The whole body, refused with 413 as soon as its stated or its actual length is over `limit` bytes.

    Raises ConnectionError when the client goes away first.
    """
    if length is not None and (not length.isdigit() or len(length) > 18 or int(length) > limit):
        raise _too_large(length.decode("latin-1"), limit)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large("more", limit)
        if not message.get("more_body", False):
            return body


def check_rows(n_rows: int, limit: int) -> None:
    """Refuse with 413 more rows than one request may hold."""
    if n_rows > limit:
        raise Refusal(413, f"A request may hold at most {limit} rows; got {n_rows}. Send them in parts.", "embedding")


def _too_large(got: str, limit: int) -> Refusal:
    return Refusal(413, f"A body may have at most {limit} bytes; got {got}. Send the rows in parts.")


def _parse(name: str, kind: Any, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{_called(name)} must be {what}; got {text!r}.") from None


def _variable(name: str) -> str:
    return f"REPSTITCH_{name.upper()}"


def _called(name: str) -> str:
    return f"`{name}` ({_variable(name)})"
