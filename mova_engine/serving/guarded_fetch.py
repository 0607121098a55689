"""Fetches a picture for a client from a server of the public internet, and from nowhere else.

Whoever sends an address could make this machine ask machines that only it can reach. Therefore: https alone; the name
is resolved once, every address that it has must be a public one, and the connection goes to an address that was looked
at, so that a name that changes in between changes nothing; no redirects; no more bytes and seconds than allowed; no
proxy of the environment, no cookies, no keys.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from mova_engine import __version__
from mova_engine.errors import MovaError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_PIECE = 1 << 16
_LONGEST = 2048


class RefusedFetchError(MovaError):
    """The address is not fetched, or did not give a file."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet; IPv4 addresses inside IPv6 ones are looked at too."""
    inside: Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inside = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if inside is None and address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is None and int(address) < 1 << 32:
            inside = ipaddress.IPv4Address(int(address))  # "IPv4-compatible", long out of use
    if inside is not None and not is_public(inside):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def fetch_public(
    url: str,
    most_bytes: int,
    seconds: float = 20.0,
    *,
    allowed: Callable[[Address], bool] = is_public,
    trust: ssl.SSLContext | None = None,
) -> bytes:
    """The file at an https address. allowed: which machines may be asked. trust: whose certificates are believed; None:
    the system's. Raises RefusedFetchError, whose words tell nothing of what other machines answered.
    """
    end = time.monotonic() + seconds
    parts = _checked(url)
    host, port = parts.hostname or "", parts.port or 443
    address = _resolved(host, port, allowed)
    connection = _ToAddress(host, port, address, seconds, trust or ssl.create_default_context())
    # However slowly the other side drips, it ends then.
    watch = threading.Timer(max(0.0, end - time.monotonic()), connection.end)
    watch.daemon = True
    watch.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers=_headers())
        answer = connection.getresponse()
        if answer.status != 200:
            what = "a redirect, which is not followed" if 300 <= answer.status < 400 else f"status {answer.status}"
            raise RefusedFetchError(f"the address answers with {what}")
        if int(answer.headers.get("Content-Length") or 0) > most_bytes:
            raise RefusedFetchError(f"the file is larger than {most_bytes} bytes")
        data = bytearray()
        while piece := answer.read(_PIECE):
            data += piece
            if len(data) > most_bytes:
                raise RefusedFetchError(f"the file is larger than {most_bytes} bytes")
            if time.monotonic() > end:
                break
        if time.monotonic() > end:
            raise RefusedFetchError(f"the file was not there within {seconds:g} s")
        return bytes(data)
    except (OSError, http.client.HTTPException, ValueError):
        if time.monotonic() > end:
            raise RefusedFetchError(f"the file was not there within {seconds:g} s") from None
        raise RefusedFetchError(
            "the address gives no file: no connection, no trusted certificate, or no HTTP"
        ) from None
    finally:
        watch.cancel()
        connection.close()


def _headers() -> dict[str, str]:
    return {"User-Agent": f"mova_engine/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RefusedFetchError("this is no address") from None
    if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise RefusedFetchError(f"an address has printable ASCII characters, at most {_LONGEST}")
    if parts.scheme != "https" or not parts.hostname:
        raise RefusedFetchError("only https:// addresses are fetched")
    if parts.username is not None or parts.password is not None:
        raise RefusedFetchError("an address with a user's name is not fetched")
    if port == 0:
        raise RefusedFetchError("this is no address")
    return parts


def _resolved(host: str, port: int, allowed: Callable[[Address], bool]) -> str:
    """The first address of a name, all of which are allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise RefusedFetchError("the address's machine is not known") from None
    addresses = [str(each[4][0]) for each in found]
    for text in addresses:
        if not allowed(ipaddress.ip_address(text.partition("%")[0])):
            raise RefusedFetchError("the address is not one of the public internet")
    if not addresses:
        raise RefusedFetchError("the address's machine is not known")
    return addresses[0]


class _ToAddress(http.client.HTTPSConnection):
    """A connection to one address, whose certificate must be that of the name."""

    def __init__(self, host: str, port: int, address: str, seconds: float, trust: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=seconds, context=trust)
        self._address, self._seconds, self._trust = address, seconds, trust
        self._open: socket.socket | None = None

    def connect(self) -> None:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        plain = self._open = socket.socket(family, socket.SOCK_STREAM)
        plain.settimeout(self._seconds)
        # By its address: no name is looked up again.
        plain.connect((self._address, self.port))
        self.sock = self._open = self._trust.wrap_socket(plain, server_hostname=self.host)

    def end(self) -> None:
        """Break the connection off, from another thread."""
        if self._open is not None:
            with contextlib.suppress(OSError):
                # The plain socket's: that of TLS would take away what the reading thread uses.
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)
