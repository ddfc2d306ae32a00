# pyright: strict
"""The errors of both clients."""

from repstitch.errors import ConflictError, InputError, NotFoundError


class ClientError(Exception):
    """A call failed. If the service answered with an error, the message is the service's.

    `status` is the HTTP status. It is None if there was no response, or if the responses to several requests do not
    match. `code` and `param` are the service's error code and the invalid parameter, if the response states them.
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class ClientInputError(ClientError, InputError):
    """The service rejected the request: 400, 413, 415, 422 or another 4xx status."""


class ClientNotFoundError(ClientError, NotFoundError):
    """The service has no such space, pair or stitcher: 404."""


class ClientConflictError(ClientError, ConflictError):
    """The request conflicts with the stitchers of the service: 409.

    The named stitcher translates between other spaces, or confidence was requested from a stitcher without calibration.
    Also raised if several versions of a stitcher translated parts of one array.
    """


class UnauthorisedError(ClientError):
    """The service requires an `api_key`, or does not accept this one: 401 or 403."""


class BusyError(ClientError):
    """The service was busy at every attempt: 429 or 503."""


class ServiceError(ClientError):
    """The service failed (5xx; 504 if it was too slow), or its response cannot be used.

    A response cannot be used if it does not match the request, if its body is compressed or larger than the request
    allows, or if the translation contains NaN, Inf or a row of zeros.
    """


class UnreachableError(ClientError):
    """No attempt got a response from the address."""
