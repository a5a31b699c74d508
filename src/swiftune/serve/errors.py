"""What a client is told when something is wrong: OpenAI's error object, with a status that says whose fault it is."""

from __future__ import annotations

from typing import Any

from swiftune.data.ledger import RowFault
from swiftune.errors import EngineEndedError, SwiftuneError, UsageError
from swiftune.runtime import log_file
from swiftune.runtime.console import warn

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: a sentence for the person who wrote the client.
        param: the field that is wrong.
        code: a word for programs.
        retry_after: seconds after which the same request may be taken.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON values."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response, beside those of every one."""
        return {
            **({"Retry-After": str(self.retry_after)} if self.retry_after else {}),
            **({"WWW-Authenticate": "Bearer"} if self.status == 401 else {}),
        }


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request cannot be done as asked (400)."""
    return ApiError(400, message, param=param, code=code)


def told(error: Exception) -> ApiError:
    """What a client is told of an exception. Of one that nobody expected it learns nothing; the log has it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError | RowFault):
        return wrong(str(error))
    if isinstance(error, SwiftuneError):
        warn(str(error))
        return ApiError(503, error.what) if isinstance(error, EngineEndedError) else ApiError(500, str(error))
    log = log_file.fault(error)
    warn(f"A request met a fault of Swiftune: {type(error).__name__}: {error}. Its traceback is in {log}.")
    return ApiError(500, "The server met a fault; its log says more.", code="internal_error")
