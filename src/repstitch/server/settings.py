"""The settings of the service, read from the environment and passed to worker processes through it."""

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from repstitch.devices import pick_device
from repstitch.errors import InputError
from repstitch.files import DEFAULT_STITCHERS, check_regular
from repstitch.lines import read_lines
from repstitch.text import nearest

log = logging.getLogger(__name__)
PREFIX = "REPSTITCH_"
MAX_KEYS_BYTES = 2**20
CHOICES = {"device": ("auto", "cpu", "cuda"), "precision": ("float32", "bfloat16", "float16")}
# As browsers send them: scheme, host and port. One in another form would match no request.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]A-Z]+)(:[0-9]+)?")
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Settings:
    """The settings of one service.

    Each field is read from the environment variable `REPSTITCH_` plus its name in capitals, such as
    `REPSTITCH_MAX_ROWS`. The values of a list are separated by commas. Limits apply to one process.

    Attributes:
        stitchers: The folder of stitchers.
        device: Where the maps run. "auto" uses CUDA if it is available, else the CPU.
        precision: The dtype of the weights on the device.
        workers: The number of processes.
        max_body_bytes: The largest request body, in bytes.
        max_json_bytes: The largest JSON body, smaller because parsed JSON takes several times the memory of its text.
        max_rows: The maximum number of rows in a request.
        max_concurrency: The maximum number of requests that are answered at the same time.
        max_held_bytes: The maximum memory for the bodies of all requests and responses together, in bytes.
        timeout_s: The maximum time to receive and answer a request, and again to send its response, in seconds.
        head_s: The maximum time from connecting, or from a response, to a complete request head, in seconds. A body
            sent, or a response read, at less than 1,000 bytes per second over this time is cut off too. Set it above
            the idle timeout of a load balancer, so that the balancer closes idle connections first.
        reload_s: The seconds between two checks of the folder for changes.
        api_keys: The valid API keys. If there are none, only requests to a loopback address are answered.
        api_keys_file: A file of further valid API keys, one per line. It is read again every `reload_s` seconds.
        open: Answer requests to any address even without API keys.
        cors_origins: The origins of the web pages that may call the service from a browser.
        encoders: The text encoders, each `SPACE=ID|PATH|CARD.toml`. `/v1/embeddings` accepts texts for these spaces.
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
    head_s: float = 30.0
    reload_s: float = 2.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_keys_file: Path | None = None
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
        check_keys(self.api_keys, f"{quoted('api_keys')} must be")
        self.read_keys()
        for origin in self.cors_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise InputError(
                    f"{quoted('cors_origins')} must be origins such as https://app.example or http://localhost:80, in "
                    f"lower case and without a path, with commas between, or *; got {origin!r}."
                )
        for entry in self.encoders:
            if not all(entry.partition("=")):
                raise InputError(
                    f"{quoted('encoders')} must be entries SPACE=ID|PATH|CARD.toml with commas between; got {entry!r}."
                )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from the environment. A setting whose variable is missing or empty has its default."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            text = environ.get(_variable(setting.name), "").strip()
            if text:
                values[setting.name] = _parse(setting.name, setting.type, text)
        values.setdefault("stitchers", Path(DEFAULT_STITCHERS))
        # Absolute, because BentoML changes the working folder between importing a service and running it.
        values = {name: value.absolute() if isinstance(value, Path) else value for name, value in values.items()}
        return cls(**values)

    def to_env(self) -> dict[str, str]:
        """Return the environment variables from which `from_env` reads these settings back."""
        return {_variable(setting.name): _to_text(getattr(self, setting.name)) for setting in fields(self)}

    @property
    def requires_key(self) -> bool:
        """Whether requests need an API key."""
        return bool(self.api_keys or self.api_keys_file)

    def read_keys(self) -> tuple[str, ...]:
        """Return `api_keys` and the keys in `api_keys_file`. Raises InputError if the file has none or is malformed.

        Empty lines and those that begin with # are no keys.
        """
        if self.api_keys_file is None:
            return self.api_keys
        try:
            check_regular(self.api_keys_file, MAX_KEYS_BYTES)
        except (OSError, ValueError) as error:
            raise InputError(f"{quoted('api_keys_file')} {self.api_keys_file} cannot be read: {error}") from None
        lines = [line.strip() for line in read_lines(self.api_keys_file, "api_keys_file")]
        keys = tuple(line for line in lines if line and not line.startswith("#"))
        subject = f"{quoted('api_keys_file')} {self.api_keys_file} must contain"
        if not keys:
            raise InputError(f"{subject} at least one API key, each on its own line; it has none.")
        check_keys(keys, subject)
        return (*self.api_keys, *keys)

    @property
    def json_bytes(self) -> int:
        """Largest JSON body, in bytes."""
        return min(self.max_json_bytes, self.max_body_bytes)

    def check_exposure(self, host: str) -> None:
        """Raise InputError if other machines can reach `host` and neither API keys nor `open` are set."""
        if not (self.requires_key or self.open or is_loopback(host)):
            raise InputError(
                f"`host` {host} is reachable from other machines, but no API keys are set: set REPSTITCH_API_KEYS, or "
                "set REPSTITCH_OPEN=true if a proxy in front of the service controls access."
            )


def check_keys(keys: Iterable[str], subject: str) -> None:
    """Raise InputError if one of the API keys is not printable ASCII without spaces. The message does not quote it."""
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise InputError(f"{subject} printable ASCII without spaces, with commas or lines between keys; one is not.")


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def choose_device(settings: Settings) -> str:
    """Return the device of the maps, "cpu" or "cuda".

    Raises InputError if the setting is cuda and CUDA is not available, or if several workers would share a CUDA device.
    """
    device = pick_device(settings.device, quoted("device"))
    if device == "cuda" and settings.workers > 1:
        raise InputError(
            f"{quoted('workers')} must be 1 on CUDA, where one process keeps the device busy; got {settings.workers}. "
            f"Set it to 1, or {quoted('device')} to cpu."
        )
    return device


def warn_of_unknown(environ: Mapping[str, str] = os.environ) -> None:
    """Log a warning for each environment variable that begins with `REPSTITCH_` and names no setting."""
    names = [_variable(setting.name) for setting in fields(Settings)]
    for name in sorted(environ.keys() - set(names)):
        if name.startswith(PREFIX):
            alike = "".join(f" Nearest: {nearby}." for nearby in nearest(name, names)[:1])
            log.warning("%s is no setting of the service and has no effect.%s", name, alike)


def quoted(name: str) -> str:
    """Return the name of a setting for messages: the field and its environment variable."""
    return f"`{name}` ({_variable(name)})"


def _parse(name: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in FLAGS:
            raise InputError(f"{quoted(name)} must be true or false; got {text!r}.")
        return FLAGS[text.lower()]
    if kind == Path | None:
        return Path(text)
    if kind not in (int, float, str, Path):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"{quoted(name)} must be {expected}; got {text!r}.") from None


def _to_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"
