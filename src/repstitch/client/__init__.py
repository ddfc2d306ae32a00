"""A client of the service: arrays go over HTTP and come back translated, with retries and checked replies."""

from repstitch.client.clients import AsyncClient, Client
from repstitch.client.errors import (
    BusyError,
    ClientConflictError,
    ClientError,
    ClientInputError,
    ClientNotFoundError,
    ServiceError,
    UnauthorisedError,
    UnreachableError,
)
from repstitch.client.responses import Translation

__all__ = [
    "AsyncClient",
    "BusyError",
    "Client",
    "ClientConflictError",
    "ClientError",
    "ClientInputError",
    "ClientNotFoundError",
    "ServiceError",
    "Translation",
    "UnauthorisedError",
    "UnreachableError",
]
