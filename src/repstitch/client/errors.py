# pyright: strict
"""The errors of both clients."""

from repstitch.errors import ConflictError, InputError, NotFoundError


class ClientError(Exception):
    """A call that failed; where the service answered, `str` of the error is the service's message.

    `status` is the HTTP status, None without an answer and where answers contradict each other. `code` and `param` are
    the service's error code and the parameter at fault, where the answer holds them.
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class ClientInputError(ClientError, InputError):
    """The service refused the request: 400, 413, 415, 422 and other 4xx."""


class ClientNotFoundError(ClientError, NotFoundError):
    """The service has no such space, pair or stitcher: 404."""


class ClientConflictError(ClientError, ConflictError):
    """A choice is needed first: 409. Also where several versions of a stitcher translated parts of one array."""


class UnauthorisedError(ClientError):
    """`api_key` is missing or not one of the service's: 401 or 403."""


class BusyError(ClientError):
    """The service was busy at every attempt: 429 or 503."""


class ServiceError(ClientError):
    """The service failed (5xx; 504 when it was too slow), or its reply does not fit the request."""


class UnreachableError(ClientError):
    """Nothing answered at the address, at any attempt."""
