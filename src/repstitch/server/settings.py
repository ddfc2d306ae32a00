"""The settings of the service, read from the environment and handed to worker processes through it."""

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
from repstitch.files import DEFAULT_STITCHERS

CHOICES = {"device": ("auto", "cpu", "cuda"), "precision": ("float32", "bfloat16", "float16")}
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


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

    stitchers: Path = Path(DEFAULT_STITCHERS)
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
                raise InputError(f"{quoted(name)} must be one of {', '.join(choices)}; got {getattr(self, name)!r}.")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type is int and (type(value) is not int or value < 1):
                raise InputError(f"{quoted(setting.name)} must be a whole number of at least 1; got {value!r}.")
            if setting.type is float and not (math.isfinite(value) and value > 0):
                raise InputError(f"{quoted(setting.name)} must be a number of seconds above 0; got {value!r}.")
        for key in self.api_keys:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(f"{quoted('api_keys')} must be plain words with commas between; one of them is none.")
        for entry in self.encoders:
            if not all(entry.partition("=")):
                raise InputError(f"{quoted('encoders')} must be SPACE=ID|PATH|CARD.toml, …; got {entry!r}.")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings in the environment; a variable that is missing or empty leaves the default."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            text = environ.get(_variable(setting.name), "").strip()
            if text:
                values[setting.name] = _parse(setting.name, setting.type, text)
        # Absolute, because BentoML changes the working folder between importing a service and running it.
        values["stitchers"] = values.get("stitchers", Path(DEFAULT_STITCHERS)).absolute()
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """The variables from which `from_env` reads these settings back."""
        return {_variable(setting.name): _to_text(getattr(self, setting.name)) for setting in fields(self)}

    @property
    def json_bytes(self) -> int:
        """The most bytes of a JSON body."""
        return min(self.max_json_bytes, self.max_body_bytes)

    def check_exposure(self, host: str) -> None:
        """Raise InputError where other machines can reach `host` and neither API keys nor `open` are set."""
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
    """The device of the maps, "cpu" or "cuda"; InputError where CUDA is missing or would be shared by workers."""
    device = pick_device(settings.device, quoted("device"))
    if device == "cuda" and settings.workers > 1:
        raise InputError(
            f"{quoted('workers')} must be 1 on CUDA, where one process keeps the device busy; got {settings.workers}. "
            f"Set it to 1, or {quoted('device')} to cpu."
        )
    return device


def quoted(name: str) -> str:
    """A setting as messages name it: the field and its variable."""
    return f"`{name}` ({_variable(name)})"


def _parse(name: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in FLAGS:
            raise InputError(f"{quoted(name)} must be true or false; got {text!r}.")
        return FLAGS[text.lower()]
    if kind not in (int, float, str, Path):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{quoted(name)} must be {expected}; got {text!r}.") from None


def _to_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variable(name: str) -> str:
    return f"REPSTITCH_{name.upper()}"
