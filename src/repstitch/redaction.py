"""Removal of passwords and keys from every text that leaves the program: messages, logs, files, replies."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "[hidden]"
SECRET_NAMES = r"(?:ssl)?password|passwd|pwd|secret|token|(?:api|access|account|secret|secret_?access)_?key"
IN_ADDRESS = re.compile(r"(?P<head>\b[a-z][a-z0-9+.-]*://[^/?#\s:@]*:)[^/?#\s@]+(?=@)", re.IGNORECASE)
IN_PARAMETER = re.compile(rf"(?P<head>[?&](?:{SECRET_NAMES})=)[^&\s'\"]+", re.IGNORECASE)
SHORT = 8  # characters; a shorter secret may be part of other words, so it is removed as a whole word only
IN_SETTING = re.compile(
    r"(?P<head>\b(?:ssl)?password\s*=\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&,;'\"]+)", re.IGNORECASE
)

_secrets: set[str] = set()


def keep_secret(secret: str) -> None:
    """Remember a secret, so that `redact` removes it, as it is and percent-encoded."""
    plain = unquote(secret)
    if plain:
        _secrets.update((secret, plain, quote(plain, safe=""), quote(plain), quote_plus(plain)))


def redact(text: str) -> str:
    """Return a text without secrets: those in addresses and settings, and all that `keep_secret` has been given."""
    keep_secret(os.environ.get("PGPASSWORD", ""))
    for secret in sorted(_secrets, key=len, reverse=True):
        if secret in text:
            form = re.escape(secret)
            text = re.sub(rf"(?<!\w){form}(?!\w)" if len(secret) < SHORT else form, HIDDEN, text)
    for pattern in (IN_ADDRESS, IN_PARAMETER, IN_SETTING):
        text = pattern.sub(rf"\g<head>{HIDDEN}", text)
    return text


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
