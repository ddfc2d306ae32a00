"""JSON responses, refusals, and the common format of all errors."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from repstitch.errors import ConflictError, InputError, NotFoundError
from repstitch.wire.fields import write_json
from repstitch.wire.rows import MalformedError

JSON = "application/json"


class Refusal(Exception):
    """Raised to answer a request with an error: its HTTP status, a one-line message and the parameter at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.headers = status, message, param, dict(headers or {})


def json_reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(write_json(content), status, headers, media_type=JSON)


def status_of(error: Exception) -> int:
    """Return the HTTP status of the response to an error."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)


def error_reply(error: Exception) -> Response:
    """Return the response to an error, with the body `{"error": {"code", "message", "param"}}`."""
    status = status_of(error)
    if isinstance(error, Refusal):
        message = error.message
    elif isinstance(error, HTTPException):
        message = MESSAGES.get(status, error.detail)
    else:
        message = FAILED if status == 500 else str(error)
    code = CODES.get(status, "error")
    content = {"error": {"code": code, "message": _one_line(message), "param": getattr(error, "param", None)}}
    return json_reply(content, status, getattr(error, "headers", None))


def _one_line(message: str) -> str:
    """Return a message as one line of valid UTF-8, even if it quotes arbitrary names from a request."""
    return " ".join(message.split()).encode("utf-8", "replace").decode()[:MESSAGE_LENGTH]


async def on_error(request: Request, error: Exception) -> Response:
    return error_reply(error)


MESSAGE_LENGTH = 1_000
FAILED = "The service failed to answer because of an internal error; see the service's log."
STATUSES = {MalformedError: 400, NotFoundError: 404, ConflictError: 409, InputError: 422}
MESSAGES = {
    404: "There is no such route; see /docs.",
    405: "This route does not support this HTTP method; see the `Allow` header.",
}
CODES = {
    400: "malformed",
    401: "unauthorised",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "unusable",
    429: "too_many_requests",
    500: "failed",
    503: "not_ready",
    504: "timed_out",
}
