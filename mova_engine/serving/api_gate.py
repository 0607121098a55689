"""What every request passes: the guard, the headers of every answer, the count of requests."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mova_engine.serving.access_guard import AccessGuard, Receive, Scope, Send
from mova_engine.serving.api_errors import ApiError
from mova_engine.serving.service_metrics import ServiceMetrics

_METHODS = ("GET", "HEAD", "POST", "DELETE")
# Of every answer that states none of its own.
_HEADERS = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
log = logging.getLogger(__name__)


class ApiGate:
    """Middleware of ASGI: refuses who is not let in, before anything of a body is read, and answers for what fails."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], guard: AccessGuard, metrics: ServiceMetrics
    ) -> None:
        self._app, self._guard, self._metrics = app, guard, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, answered = time.monotonic(), False

        async def send_more(message: Any) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                stated = {name.lower(): value for name, value in message.get("headers", ())}
                more = {**_HEADERS, b"x-request-id": f"req_{secrets.token_hex(12)}".encode()}
                fresh = [(name, value) for name, value in more.items() if name not in stated]
                message = {**message, "headers": [*message.get("headers", ()), *fresh]}
                self._count(scope, message["status"], stated, time.monotonic() - begun)
                answered = True
            await send(message)

        async def refuse(error: ApiError) -> None:
            from fastapi.responses import JSONResponse

            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send_more)

        try:
            scope.setdefault("state", {})["client"] = self._guard.client(scope)
        except ApiError as error:
            await refuse(error)
            return
        try:
            await self._app(scope, receive, send_more)
        except Exception:
            # Here, not outside of all middleware, so that it is counted and has the headers of every answer.
            if answered:
                raise
            log.exception("a request of %s failed", getattr(scope.get("route"), "path", "none"))
            await refuse(ApiError(500, "the server made a mistake; its log has more", code="internal_error"))

    def _count(self, scope: Scope, status: int, headers: dict[bytes, bytes], seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.answered(method, route, status, seconds)
        if route.endswith("/content") and method == "GET" and status in (200, 206):
            self._metrics.sent(int(headers.get(b"content-length", b"0")))
