"""What calling the service comes to when it comes to no answer."""

from repstitch.errors import ConflictError, InputError, NotFoundError


class ClientError(Exception):
    """What calling the service came to when not to an answer; `str` of it is the service's own message.

    `status` is the HTTP status (None when there was no answer, or when answers contradict each other), `code` and
    `param` are the service's word for it and the parameter at fault, where it gave them.
    """

    def __init__(self, message: str, status: int | None = None, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class ClientInputError(ClientError, InputError):
    """The service refused what was sent: 400, 413, 415, 422 and other 4xx."""


class ClientNotFoundError(ClientError, NotFoundError):
    """No such space, pair or stitcher there: 404."""


class ClientConflictError(ClientError, ConflictError):
    """A choice is needed first: 409, or parts of one array that several versions of a stitcher answered."""


class UnauthorisedError(ClientError):
    """`api_key` is missing or not one of the service's: 401 or 403."""


class BusyError(ClientError):
    """The service took nothing, however often it was asked: 429 or 503."""


class ServiceError(ClientError):
    """The service failed (5xx; 504 when it was too slow), or answered something that is no answer to this request."""


class UnreachableError(ClientError):
    """Nothing answered at the address, however often it was tried."""
