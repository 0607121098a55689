"""Refusals of requests, in the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused. status: of HTTP. param: the field that is wrong. code: a word for programs.

    headers: of the answer. OpenAI's clients try 408, 409, 429 and 5xx again, unless x-should-retry says false.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_field(name: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """The refusal of a field's value."""
    return ApiError(400, message, param=name, code=code)


def no_video() -> ApiError:
    """What is answered for a job that is not there, is another key's, or whose name is no id: the same words."""
    return ApiError(404, "there is no such video", param="video_id", code="not_found")
