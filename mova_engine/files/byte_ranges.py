"""Reads ranges of bytes of files that may be elsewhere: local, over HTTP(S), and through fsspec (s3://, gs://, ...).

HTTP is spoken by Python's own library, not by fsspec's: what matters here is to see whether a server has sent the range
that it was asked for. A server may ignore ranges and send the whole file, which may take hours to read.

Two kinds of errors are told apart. What may pass (no connection, a busy server, a transfer that broke off or does not
get on) is tried again for PATIENCE_S seconds, with growing waits, and then raises UnreachableError. What will not pass
(no such file, no permission, no ranges, another size) is tried ODD_TRIES times, since servers are moody, and then
raises UnreadableError. Messages name the file without the query of its address, which may hold a signature.
"""

import base64
import errno
import http.client
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from mova_engine import __version__
from mova_engine.errors import MovaError, require_package
from mova_engine.files.atomic import require_file

log = logging.getLogger(__name__)
R = TypeVar("R")
_SHORT = "is shorter than the index says ({} of {} bytes are there)"

# Seconds for which what may pass is tried again, and the first and longest waits between two tries.
PATIENCE_S = 300.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# Tries of what will not pass.
ODD_TRIES = 3
# Seconds without a byte after which a transfer has stopped, and bytes a second below which it does not get on.
SILENCE_S = 60.0
LEAST_RATE = 64 << 10
CHUNK = 1 << 20
# What Content-Encoding says of a body that is not the file itself.
COMPRESSED = ("gzip", "x-gzip", "deflate", "compress", "br", "zstd")
# HTTP statuses that may pass.
PASSING = (408, 425, 429, 500, 502, 503, 504)
# Errors of the system that may pass: network file systems report them. By EBUSY s3fs means that a server asks to slow
# down, by EREMOTEIO that it has failed within.
PASSING_ERRNO = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENOTCONN, errno.ECONNRESET),
    *(errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)),
)


class UnreadableError(MovaError):
    """A file that cannot be read, however often it is tried."""


class UnreachableError(MovaError):
    """A place that did not answer, or not properly, for PATIENCE_S seconds: this says nothing about its files."""


@dataclass(frozen=True)
class FileFacts:
    """What a place says of a file. size: in bytes. modified: seconds since 1970. etag: its version. None: not said."""

    size: int | None = None
    modified: float | None = None
    etag: str | None = None


class PassingError(Exception):
    """Within `retried`: a try has failed in a way that may pass. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class OddError(Exception):
    """Within `retried`: a try has failed in a way that will not pass."""


def is_local(address: str) -> bool:
    """Whether an address is a path, with or without file:// in front."""
    return "://" not in address or address.startswith("file://")


def was_address(path: Path) -> bool:
    """Whether a path was meant as an address: as a path s3://bucket/a.parquet has lost one of its slashes."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None


def without_query(address: str) -> str:
    """An address as messages show it: without its query, and without a name and password in front of the host."""
    if is_local(address):
        return address
    scheme, _, rest = address.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def read_range(address: str, offset: int, size: int) -> bytes:
    """The bytes `offset` to `offset + size` of a file. Raises UnreadableError and UnreachableError."""
    return retried(address, lambda: _place(address).read(address, offset, size))


def read_facts(address: str) -> FileFacts:
    """What a file's place says of it. Raises UnreadableError and UnreachableError."""
    return retried(address, lambda: _place(address).facts(address))


@contextmanager
def opened(address: str) -> Iterator[BinaryIO]:
    """The file as a stream, from its beginning on, for `retried`. Errors are those that it tries again."""
    with _place(address).open(address) as stream, _sorted_errors():
        yield stream


class _Endings:
    """How often work has ended whose reads in other threads need not be tried again."""

    def __init__(self) -> None:
        self.count, self._changed = 0, threading.Condition()

    def add(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def waited(self, seconds: float, count: int) -> bool:
        """Wait so long, or until there are more than `count`; returns whether there are."""
        with self._changed:
            return self._changed.wait_for(lambda: self.count != count, seconds)


_endings = _Endings()


def end_retries() -> None:
    """Reads that threads are trying again now give up with UnreachableError: for who ends before its threads do, which
    Python waits for.
    """
    _endings.add()


def retried(address: str, attempt: Callable[[], R]) -> R:
    """What `attempt` returns, which is called until it succeeds or the limits above are reached."""
    begin, tries, odd, wait = time.monotonic(), 0, 0, FIRST_WAIT_S
    ending = _endings.count
    while True:
        tries += 1
        try:
            return attempt()
        except OddError as error:
            odd += 1
            if odd >= ODD_TRIES:
                raise UnreadableError(f"{without_query(address)}: {error}") from None
            pause = FIRST_WAIT_S
        except PassingError as error:
            pause = min(max(wait, error.after), LONGEST_WAIT_S)
            if time.monotonic() + pause - begin > PATIENCE_S:
                spent = f"{tries} tries in {time.monotonic() - begin:.0f} s"
                raise UnreachableError(f"{without_query(address)}: {error} ({spent})") from None
            if tries == 1:
                log.warning("%s: %s; trying again for up to %.0f s", without_query(address), error, PATIENCE_S)
            wait *= 2
        if _endings.waited(pause, ending):
            raise UnreachableError(f"{without_query(address)}: given up, since the work that it is for has ended")


@contextmanager
def _sorted_errors() -> Iterator[None]:
    """Turns what libraries raise into PassingError and OddError."""
    try:
        yield
    except urllib.error.HTTPError as error:
        # What it says may have several lines.
        status = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
        error.close()
        if error.code == 416:
            raise OddError("is shorter than the index says (416 Range Not Satisfiable)") from None
        if error.code in PASSING:
            raise PassingError(status, _seconds(error.headers.get("Retry-After"))) from None
        raise OddError(status) from None
    except TimeoutError:
        raise PassingError(f"no byte came for {SILENCE_S:g} s") from None
    except urllib.error.URLError as error:
        raise PassingError(f"cannot be reached ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise PassingError(f"the transfer broke off ({error or type(error).__name__})") from None
    except FileNotFoundError:
        raise OddError("no such file") from None
    except PermissionError:
        raise OddError("no permission to read it") from None
    except OSError as error:
        kind = PassingError if error.errno in PASSING_ERRNO or error.errno is None else OddError
        raise kind(f"cannot be read ({error.strerror or error})") from None


def _seconds(text: str | None) -> float:
    """The header Retry-After, in seconds; a date counts as none."""
    return float(text) if text is not None and text.isdecimal() else 0.0


class _LocalPlace:
    """Files of this machine."""

    def open(self, address: str) -> BinaryIO:
        with _sorted_errors():
            return open(self._path(address), "rb")

    def read(self, address: str, offset: int, size: int) -> bytes:
        with self.open(address) as file, _sorted_errors():
            # Memory is taken for as much as is asked for, and an index may ask for anything.
            there = max(0, os.fstat(file.fileno()).st_size - offset)
            if there < size:
                raise OddError(_SHORT.format(there, size))
            data = os.pread(file.fileno(), size, offset)
            while len(data) < size and (more := os.pread(file.fileno(), size - len(data), offset + len(data))):
                data += more
        return _whole(data, size)

    def facts(self, address: str) -> FileFacts:
        try:
            status = require_file(self._path(address))
        except MovaError as error:
            raise OddError(str(error).removeprefix(f"{self._path(address)}: ")) from None
        return FileFacts(status.st_size, status.st_mtime)

    def _path(self, address: str) -> str:
        return address.removeprefix("file://")


class _HttpPlace:
    """Files of a web server. Proxies are used as the environment says."""

    def open(self, address: str) -> BinaryIO:
        return self._request(address)

    def read(self, address: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        deadline = time.monotonic() + SILENCE_S + size / LEAST_RATE
        last = offset + size - 1
        with self._request(address, Range=f"bytes={offset}-{last}") as answer, _sorted_errors():
            if answer.status != 206:
                raise OddError(f"the server refuses ranges (status {answer.status} instead of 206)")
            sent = (answer.headers.get("Content-Range") or "").partition("/")[0]
            if sent != f"bytes {offset}-{last}":
                raise OddError(f"the server has sent '{sent}' instead of bytes {offset}-{last}")
            data = bytearray()
            # What has come already: a whole chunk may take hours to come.
            while len(data) < size and (part := answer.read1(min(CHUNK, size - len(data)))):
                data += part
                if time.monotonic() > deadline:
                    raise PassingError(f"comes more slowly than {LEAST_RATE >> 10} KiB a second")
            if len(data) < size:
                raise PassingError(f"the transfer broke off after {len(data)} of {size} bytes")
        return bytes(data)

    def facts(self, address: str) -> FileFacts:
        # By the method by which files are read: signed addresses hold for one method alone.
        with self._request(address, Range="bytes=0-0") as answer:
            date = answer.headers.get("Last-Modified")
            length = answer.headers.get("Content-Length" if answer.status != 206 else "Content-Range") or ""
            length = length.rpartition("/")[2]
            try:
                modified = None if date is None else parsedate_to_datetime(date).timestamp()
            except (ValueError, OverflowError):
                modified = None
            size = int(length) if length.isdecimal() else None
            return FileFacts(size, modified, answer.headers.get("ETag"))

    def _request(self, address: str, **headers: str) -> Any:
        # Without compression, which some servers apply on the way and which would change the ranges.
        given = {"User-Agent": f"mova-engine/{__version__}", "Accept-Encoding": "identity", **headers}
        with _sorted_errors():
            try:
                parts = urlsplit(address)
                bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
                request = urllib.request.Request(bare, headers=given)
                if parts.username is not None:
                    words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                    word = base64.b64encode(words.encode()).decode()
                    # Not for another host that the server may send us to.
                    request.add_unredirected_header("Authorization", f"Basic {word}")
                answer = urllib.request.urlopen(request, timeout=SILENCE_S)
            except (ValueError, http.client.InvalidURL):
                # What is wrong is not repeated: it may be in the query or the password.
                raise OddError("not a usable address (write spaces and the like as %20)") from None
        packed = (answer.headers.get("Content-Encoding") or "").lower()
        if packed in COMPRESSED:
            answer.close()
            raise OddError(f"the server sends it compressed ({packed}), in which no place can be found")
        return answer


class _FsspecPlace:
    """Files of whatever fsspec knows: s3:// with s3fs, gs:// with gcsfs, and so on."""

    def __init__(self, scheme: str) -> None:
        require_package("fsspec", f"{scheme}://")
        self._scheme = scheme

    @property
    def _files(self) -> Any:
        # fsspec keeps one for each process: its file systems do not outlive a fork.
        import fsspec

        try:
            return fsspec.filesystem(self._scheme)
        except (ImportError, ValueError) as error:
            raise MovaError(f"{self._scheme}:// cannot be read: {' '.join(str(error).split())}") from None

    def open(self, address: str) -> BinaryIO:
        with self._errors():
            return self._files.open(address, "rb")

    def read(self, address: str, offset: int, size: int) -> bytes:
        try:
            with self._errors():
                data = self._files.cat_file(address, start=offset, end=offset + size) if size else b""
        except OddError:
            # Of a range that begins beyond the end each file system says something else.
            there = self.facts(address).size
            if there is not None and there < offset + size:
                raise OddError(_SHORT.format(max(0, there - offset), size)) from None
            raise
        if len(data) > size:
            raise OddError(f"the server refuses ranges (it has sent {len(data)} bytes instead of {size})")
        return _whole(data, size)

    def facts(self, address: str) -> FileFacts:
        with self._errors():
            info = self._files.info(address)
        etag = next((str(info[key]) for key in ("ETag", "etag") if info.get(key)), None)
        return FileFacts(info.get("size"), None, etag)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with _sorted_errors():
                yield
        except (PassingError, OddError, MovaError):
            raise
        except Exception as error:
            # Each file system has errors of its own, none of which can be known here.
            raise PassingError(f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from None


def _whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise OddError(_SHORT.format(len(data), size))
    return data


_Place = _LocalPlace | _HttpPlace | _FsspecPlace


def _place(address: str) -> _Place:
    return _place_of("" if is_local(address) else urlsplit(address).scheme.lower())


@cache
def _place_of(scheme: str) -> _Place:
    if not scheme:
        return _LocalPlace()
    return _HttpPlace() if scheme in ("http", "https") else _FsspecPlace(scheme)
