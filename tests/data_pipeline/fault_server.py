"""A web server of tar shards that answers ranges, and wrongly when it is told to."""

import hashlib
import io
import re
import tarfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What the next answers for a file are, instead of the right one; None: right.
#   a number: that status.  busy: 503 with Retry-After.  silent: nothing comes.  drip: a byte now and then.
#   short: the connection closes half way.  reset: it closes at once.  whole: 200 and the whole file.
#   elsewhere: another range than was asked for.  wrong: other bytes.  packed: it says that it is compressed.
#   loop: a redirection to the file itself.
Fault = int | str | None


class FaultServer:
    """Serves the files of `folder`. faults: by file name, each used up by one answer; `always`: for every answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.asked: Counter[str] = Counter()
        # By file name, the name and password of the last request.
        self.told: dict[str, str | None] = {}
        self.sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.partition("?")[0].lstrip("/")
        self.asked[name] += 1
        self.told[name] = request.headers.get("Authorization")
        fault = self.faults[name].pop(0) if self.faults[name] else self.always.get(name)
        with suppress(BrokenPipeError, ConnectionResetError):
            self._send(request, name, fault)

    def _send(self, request: BaseHTTPRequestHandler, name: str, fault: Fault) -> None:
        path = self.folder / name
        if isinstance(fault, int) or fault == "busy" or not path.is_file():
            status = fault if isinstance(fault, int) else 503 if fault == "busy" else 404
            request.send_response(status)
            if fault == "busy":
                request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "reset":
            request.connection.close()
            return
        if fault == "loop":
            request.send_response(302)
            request.send_header("Location", request.path)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if fault == "silent":
            time.sleep(3)
            return
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked and fault != "whole":
            first, last = int(asked[1]), int(asked[2])
            if last >= len(data):
                request.send_response(416)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            if fault == "elsewhere":
                first, last = first + 1, last + 1
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", etag)
        if fault == "packed":
            request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        if fault == "wrong":
            data = bytes(len(data))
        if fault == "short":
            data = data[: len(data) // 2]
        self.sent += len(data)
        if fault == "drip":
            for byte in data:
                request.wfile.write(bytes([byte]))
                time.sleep(0.02)
        request.wfile.write(data)
        if fault == "short":
            request.connection.close()

    @contextmanager
    def running(self) -> Iterator["FaultServer"]:
        """The server answers within the with-block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def write_shard(path: Path, members: Mapping[str, bytes | Path]) -> Path:
    """A tar file of the named contents, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
