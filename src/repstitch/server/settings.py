"""How one service runs: its settings, read from the environment and handed to worker processes through it."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from repstitch.devices import pick_device
from repstitch.errors import InputError
from repstitch.stitchers.registry import DEFAULT_FOLDER

CHOICES = {"device": ("auto", "cpu", "cuda"), "precision": ("float32", "bfloat16", "float16")}
SAID = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Settings:
    """How one service runs; each field is read from `REPSTITCH_` and its name in capitals, lists with commas.

    `stitchers` is the folder served from, looked at every `reload_s` seconds. `device` is where maps run ("auto" takes
    CUDA when there is one) and `precision` what their weights are kept in there. Limits are for one process: the bytes
    of a request (fewer in JSON, which takes several times its text in memory) and its rows, the translations at once,
    the bytes of all bodies and replies held at once, and the seconds that one request may take to arrive and be
    answered, and again to be fetched. With `api_keys` a request must carry one of them; without, only connections that
    arrive on a loopback address are answered, unless `open` is set. `cors_origins` are the web pages that browsers may
    call from, `encoders` (`SPACE=ID|PATH|CARD.toml`) the text encoders that `/v1/embeddings` may be sent texts for.
    """

    stitchers: Path = Path(DEFAULT_FOLDER)
    device: str = "auto"
    precision: str = "float32"
    workers: int = 1
    max_body_bytes: int = 64 * 2**20
    max_json_bytes: int = 16 * 2**20
    max_rows: int = 16_384
    max_concurrency: int = 128
    max_held_bytes: int = 512 * 2**20
    timeout_s: float = 30.0
    reload_s: float = 2.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    open: bool = False
    cors_origins: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{called(name)} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is int and (type(value) is not int or value < 1):
                raise InputError(f"{called(each.name)} must be a whole number of at least 1; got {value!r}.")
            if each.type is float and not (math.isfinite(value) and value > 0):
                raise InputError(f"{called(each.name)} must be a number of seconds above 0; got {value!r}.")
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{called('api_keys')} must be plain words with commas between; one of them is none.")
        for entry in self.encoders:
            if not all(entry.partition("=")):
                raise InputError(f"{called('encoders')} must be SPACE=ID|PATH|CARD.toml, …; got {entry!r}.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that the environment states; what it leaves out, or leaves empty, keeps its default."""
        stated: dict[str, Any] = {}
        for each in fields(cls):
            text = environ.get(_variable(each.name), "").strip()
            if text:
                stated[each.name] = _parse(each.name, each.type, text)
        # Absolute, because BentoML changes the working folder between importing a service and running it.
        stated["stitchers"] = stated.get("stitchers", Path(DEFAULT_FOLDER)).absolute()
        return cls(**stated)

    def to_env(self) -> dict[str, str]:
        """The variables that `from_env` reads these settings back from."""
        return {_variable(each.name): _written(getattr(self, each.name)) for each in fields(self)}

    @property
    def json_bytes(self) -> int:
        """The most bytes of a body in JSON: its own limit, within that of all bodies."""
        return min(self.max_json_bytes, self.max_body_bytes)

    def check_exposure(self, host: str) -> None:
        """Refuse to listen where others can reach the service while nothing keeps them out."""
        if not (self.api_keys or self.open or is_loopback(host)):
            raise InputError(
                f"`host` {host} can be reached from elsewhere, and no key is asked for: set REPSTITCH_API_KEYS, or "
                "REPSTITCH_OPEN=true where something before it keeps strangers out."
            )


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def choose_device(settings: Settings) -> str:
    """Where maps run: "cpu" or "cuda"; InputError when CUDA is asked for and not there, or shared by workers."""
    device = pick_device(settings.device, called("device"))
    if device == "cuda" and settings.workers > 1:
        raise InputError(
            f"{called('workers')} must be 1 on CUDA, where one process keeps the device busy; got {settings.workers}. "
            f"Set it to 1, or {called('device')} to cpu."
        )
    return device


def called(name: str) -> str:
    """A setting as messages name it."""
    return f"`{name}` ({_variable(name)})"


def _parse(name: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in SAID:
            raise InputError(f"{called(name)} must be true or false; got {text!r}.")
        return SAID[text.lower()]
    if kind not in (int, float, str, Path):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{called(name)} must be {what}; got {text!r}.") from None


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variable(name: str) -> str:
    return f"REPSTITCH_{name.upper()}"
