# pyright: strict
"""HTTP clients of the service. They send arrays, and check the translations that they receive."""

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
