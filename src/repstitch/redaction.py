"""Removal of passwords and keys from every text that leaves the program: messages, logs, files, replies."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "[hidden]"
SHORT = 8  # characters; a shorter secret may be part of other words, so it is removed as a whole word only
OWN = ("table", "vector", "id", "where")  # the parameters of an address that are not for the driver
ADDRESS_START = re.compile(r"\b(?:[a-z][a-z0-9+.-]*://|postgres(?:ql)?:/?)", re.IGNORECASE)  # `//` may be forgotten
IN_ADDRESS = re.compile(rf"(?P<scheme>{ADDRESS_START.pattern})(?P<place>[^\s\"]+)", re.IGNORECASE)
USER = re.compile(r"[^/:?]*(?<!^\[)(?<![@,]\[):")  # before a password, or before a port; not inside [::1]
PORT = re.compile(r"\d*(?:[,/].*)?", re.DOTALL)
SECRET_NAME = re.compile(r"(?!sslkey$)(?:.*(?:password|passwd|pwd|secret|token).*|.*key)", re.IGNORECASE)
IN_PARAMETER = re.compile(r"(?P<head>[?&](?P<name>[^=&?\s]+)=)(?P<value>[^&\s'\"]+)")
IN_SETTING = re.compile(
    r"(?P<head>\b\w*(?:password|passwd|secret|scram_client_key|scram_server_key)\s*=\s*)"
    r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;'\"]+)",
    re.IGNORECASE,
)

_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Remember a secret, so that `redact` removes it, as it is and percent-encoded."""
    plain = unquote(secret)
    if plain:
        _secrets.update((secret, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)))


def password_in(place: str) -> str:
    """Return the password, as it is written, in what follows `://` of an address; "" if there is none.

    A password that is not percent-encoded may contain `/`, `?` and `@`, so it ends at the last `@`. An `@` in the value
    of a parameter ends none.
    """
    user = USER.match(place)
    if user is None:
        return ""
    after = place[user.end() :]
    locator, _, query = after.partition("?")
    is_port = PORT.fullmatch(locator) is not None
    if is_port and "@" in user[0]:  # USER@HOST:PORT
        return ""
    name, equals, _ = query.partition("=")
    has_parameters = equals and name.isidentifier() and (is_port or "@" in locator or name in OWN)
    return (locator if has_parameters else after).rpartition("@")[0]


def is_secret_name(name: str) -> bool:
    """Return whether the parameter of an address with this name, which may be percent-encoded, is a secret."""
    return SECRET_NAME.fullmatch(unquote(name)) is not None


def redact(text: str) -> str:
    """Return a text without secrets: those in addresses and settings, and all that `keep_secret` has been given."""
    keep_secret(os.environ.get("PGPASSWORD", ""))
    for secret in sorted(_secrets, key=len, reverse=True):
        if secret in text:
            form = re.escape(secret)
            text = re.sub(rf"(?<!\w){form}(?!\w)" if len(secret) < SHORT else form, HIDDEN, text)
    text = IN_ADDRESS.sub(_without_password, text)
    text = IN_PARAMETER.sub(lambda m: m["head"] + (HIDDEN if is_secret_name(m["name"]) else m["value"]), text)
    return IN_SETTING.sub(rf"\g<head>{HIDDEN}", text)


def _without_password(address: re.Match[str]) -> str:
    place = address["place"]
    password = password_in(place)
    return address["scheme"] + (place.replace(f":{password}@", f":{HIDDEN}@", 1) if password else place)


def redact_values(value: Any) -> Any:
    """Return a JSON value whose texts have no secrets. Keys and numbers stay, because programs rely on them."""
    if isinstance(value, Mapping):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(item) for item in value]
    return redact(value) if isinstance(value, str) else value


class RedactingFormatter(logging.Formatter):
    """Formats log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_handler(form: str) -> logging.Handler:
    """Return a handler that logs to stderr, without secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter(form))
    return handler
