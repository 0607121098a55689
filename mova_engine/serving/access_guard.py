"""Who may send a request: keys, and without keys, only pages and programs of this machine.

A server without keys listens on this machine alone, but a page of any site that is open in a browser here can send
requests to it. Three things keep such pages away: the Host header must name this machine (a name that was rebound to
127.0.0.1 does not), a browser's Origin must be the server's own, and no answer allows another origin to read it.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mova_engine.serving.api_errors import ApiError
from mova_engine.serving.api_keys import ApiKey, ApiKeys, is_loopback
from mova_engine.serving.video_job import LOCAL

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
# What is answered without a key: neither tells of a job.
_OPEN = ("/", "/health", "/openapi.json", "/favicon.ico")
_OPEN_BELOW = "/page/"
_LONGEST_KEY = 512


@dataclass(frozen=True)
class Client:
    """Who sent a request. owner: whose jobs it may see. metrics: whether it may read the figures of the server."""

    owner: str
    metrics: bool


@dataclass(frozen=True)
class AccessGuard:
    """The rules. keys: None without. local: whether the server listens on this machine alone."""

    keys: ApiKeys | None
    local: bool

    def client(self, scope: Scope) -> Client | None:
        """Who sent it; None: nobody that is known, for what is open to all. Raises ApiError for what is refused."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self.keys is None:
            self._check_browser(headers)
            return Client(LOCAL, True)
        key = self._key(headers.get(b"authorization", ""))
        if key is not None:
            return Client(key.name, key.metrics)
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            return None
        words = "this server wants a key: send the header 'Authorization: Bearer KEY'"
        raise ApiError(401, words, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _key(self, header: str) -> ApiKey | None:
        scheme, _, secret = header.partition(" ")
        if self.keys is None or scheme.lower() != "bearer" or not 0 < len(secret.strip()) <= _LONGEST_KEY:
            return None
        return self.keys.owner_of(secret.strip())

    def _check_browser(self, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        if self.local and not is_loopback(_name_of(host)):
            raise ApiError(403, "this server answers to localhost and 127.0.0.1 only", code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is not None and _site(origin) != host.lower():
            raise ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")
        if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ApiError(403, "pages of other sites may not use this server", code="origin_not_allowed")


def _name_of(host: str) -> str:
    """The host of a Host header, without its port; empty for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _site(origin: str) -> str:
    """Host and port of an Origin header."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
