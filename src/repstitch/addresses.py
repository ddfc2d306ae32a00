"""Addresses of embeddings in stores: `scheme://LOCATOR?table=T&vector=V&id=ID&where=CONDITION`.

The locator, which is everything between `://` and `?`, belongs to the store and stays as it is. Of the parameters after
`?`, those named in OWN are ours. The others are for the driver of the store, which gets them unchanged.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from repstitch.errors import InputError
from repstitch.redaction import ADDRESS_START, OWN, is_secret_name, keep_secret, password_in, redact
from repstitch.text import nearest

SCHEMES = ("lancedb", "postgresql", "postgres")
WITH_PARAMETERS = ("postgresql", "postgres")  # their drivers have parameters of their own
LEAST_PART = 3  # characters of a part of a secret that is a secret too
ENVIRONMENT = "REPSTITCH_ADDRESS"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
PARAMETER = re.compile(r"[?&](?P<name>[^=&?]+)=(?P<value>(?:[^&]|&(?![^=&]*=))*)")
NAME = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


@dataclass(frozen=True)
class Address:
    """The embeddings of one column of a table in a store.

    Args:
        scheme: `lancedb` or `postgresql`.
        locator: The part between `://` and `?`, unchanged: a path, or hosts and the name of a database.
        table: The table, as `NAME` or `SCHEMA.NAME`. A name that contains a dot is in double quotes.
        vector: The column of the vectors, or None for the only column of vectors.
        id: The column of the ids, or None for the primary key.
        where: A condition in SQL that selects rows, or None for all rows.
        parameters: The parameters of the driver, unchanged, such as `sslmode=require`.
    """

    scheme: str
    locator: str
    table: str
    vector: str | None = None
    id: str | None = None
    where: str | None = None
    parameters: str = ""

    def __str__(self) -> str:
        """Return the address without secrets."""
        return redact(self.to_text())

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    def to_text(self) -> str:
        """Return the whole address, with the password if it contains one."""
        parameters = [f"{name}={quote(value, safe=SAFE)}" for name in OWN if (value := getattr(self, name)) is not None]
        return f"{self.scheme}://{self.locator}?{'&'.join([*parameters, *filter(None, [self.parameters])])}"

    @property
    def connection(self) -> str:
        """The address of the store itself, for its driver: with the driver's parameters and without ours."""
        return f"{self.scheme}://{self.locator}{'?' if self.parameters else ''}{self.parameters}"

    @property
    def label(self) -> str:
        """What cards and reports say of the address: the scheme, the table and the column, and no host or user."""
        return f"{self.scheme} table {self.table}" + (f", column {self.vector}" if self.vector else "")

    def table_parts(self) -> tuple[str, ...]:
        """Return the names in `table`, without quotes: (name,) or (schema, name)."""
        return split_table(self.table)


def is_address(source: object) -> bool:
    """Return whether a source of embeddings is text that begins with the scheme of a store."""
    scheme_match = SCHEME.match(source) if isinstance(source, str) else None
    return scheme_match is not None and scheme_match[1].lower() in SCHEMES


def parse_address(text: str) -> Address:
    """Parse an address.

    If the locator is empty, the environment variable REPSTITCH_ADDRESS may contain the locator and the parameters of
    the driver. Raises InputError if the address is not valid. No message repeats a password.
    """
    _keep_secrets(text)
    scheme_match = SCHEME.match(text)
    if scheme_match is None or scheme_match[1].lower() not in SCHEMES:
        raise InputError(f"An address must begin with {' or '.join(f'{name}://' for name in SCHEMES)}; got {text}.")
    scheme = "postgresql" if scheme_match[1].lower() == "postgres" else scheme_match[1].lower()
    locator, query = _split(scheme, text[scheme_match.end() :])
    ours, others = _split_parameters(query, scheme, text)
    if not locator and not others:
        locator, others = _from_environment(scheme)
    if scheme == "lancedb" and not locator:
        raise InputError(f"{redact(text)} must name the folder of the database: lancedb://PATH?table=T.")
    if "table" not in ours:
        raise InputError(f"{redact(text)} must name a table: add {'&' if query else '?'}table=NAME.")
    split_table(ours["table"])
    return Address(scheme, locator, parameters="&".join(others), **ours)


def check_no_secret(text: str) -> None:
    """Raise InputError if an address contains a password or a key. The message does not repeat the address.

    Other users of the machine can read the arguments of a program.
    """
    if _keep_secrets(text):
        raise InputError(
            "An address on the command line must not contain a password or a key, because other users of the machine "
            "can read it there. Put it into ~/.pgpass, PGPASSWORD or a service (PGSERVICE), or put the address without "
            f"table, vector and id into {ENVIRONMENT} and pass postgresql://?table=NAME. Write an @ that belongs to no "
            "password as %40."
        )


def split_table(table: str) -> tuple[str, ...]:
    """Split `SCHEMA.NAME` or `NAME`, in which names may be in double quotes, into the names without quotes."""
    parts, at = [], 0
    while name_match := NAME.match(table, at):
        parts.append(name_match[1].replace('""', '"') if name_match[1] is not None else name_match[2])
        at = name_match.end()
        if table[at : at + 1] != ".":
            break
        at += 1
    if at != len(table) or not 1 <= len(parts) <= 2:
        raise InputError(
            f"`table` must be NAME or SCHEMA.NAME, with double quotes around a name that contains a dot; got {table!r}."
        )
    return tuple(parts)


def _split_parameters(query: str, scheme: str, text: str) -> tuple[dict[str, str], list[str]]:
    """Split the parameters into ours, decoded, and those of the driver, unchanged."""
    ours: dict[str, str] = {}
    others: list[str] = []
    for parameter in filter(None, query.split("&")):
        name, equals, value = parameter.partition("=")
        if name in OWN:
            if name in ours:
                raise InputError(f"{redact(text)} must state {name} once.")
            if not value:
                raise InputError(f"{redact(text)} must have a value after {name}=.")
            ours[name] = unquote(value)
        elif scheme in WITH_PARAMETERS and equals and not _is_misspelt(name):
            others.append(parameter)
        else:
            near = nearest(name, OWN)
            advice = f"; did you mean {near[0]}?" if near else f"; parameters are {', '.join(OWN)}."
            raise InputError(f"{redact(text)} has the unknown parameter {name}{advice}")
    return ours, others


def _is_misspelt(name: str) -> bool:
    return name.casefold() in OWN or name.rstrip("s").casefold() in OWN or name in ("vectors", "column", "where_clause")


def _from_environment(scheme: str) -> tuple[str, list[str]]:
    """Return the locator and the driver's parameters in REPSTITCH_ADDRESS: nothing if it is not set."""
    stated = os.environ.get(ENVIRONMENT, "")
    _keep_secrets(stated)
    scheme_match = SCHEME.match(stated)
    if scheme_match is None:
        if stated:
            raise InputError(f"{ENVIRONMENT} must be an address such as postgresql://user@host/database.")
        return "", []
    if scheme != ("postgresql" if scheme_match[1].lower() == "postgres" else scheme_match[1].lower()):
        raise InputError(f"{ENVIRONMENT} must begin with {scheme}://, as the address does.")
    locator, query = _split(scheme, stated[scheme_match.end() :])
    return locator, [part for part in query.split("&") if part and part.partition("=")[0] not in OWN]


def _split(scheme: str, place: str) -> tuple[str, str]:
    """Split what follows `://` into the locator and the parameters."""
    if scheme in WITH_PARAMETERS and set("/?@") & set(password_in(place)):  # a driver would take parts of it for a host
        raise InputError(
            "In an address, the characters /, ? and @ of a password, and an @ that belongs to no password, must be "
            "percent-encoded: write %2F, %3F and %40."
        )
    locator, _, query = place.partition("?")
    return locator, query


def _keep_secrets(text: str) -> bool:
    """Remember the secrets of the addresses in a text, for `redact`, and return whether there are any."""
    secrets = []
    for start in ADDRESS_START.finditer(text):
        place = text[start.end() :]
        secrets.append(password_in(place))
        secrets += [match["value"] for match in PARAMETER.finditer(place) if is_secret_name(match["name"])]
    for secret in secrets:
        keep_secret(secret)
        for part in re.split(r"[/?@:,&=\s]", secret):  # a driver's message may contain a part of it
            keep_secret(part if len(part) >= LEAST_PART else "")
    return any(secrets)


SAFE = "/:@$,;()*!'\"._-~ ".replace(" ", "")
