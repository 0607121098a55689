"""An S3 server: moto's, which speaks the protocol over HTTP, and answers wrongly when it is told to."""

import threading
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

_BUCKET = "bucket"
# Codes of S3's protocol, with their HTTP status.
_STATUS = {
    "SlowDown": "503 Slow Down",
    "ServiceUnavailable": "503 Service Unavailable",
    "InternalError": "500 Internal Server Error",
    "AccessDenied": "403 Forbidden",
}


class S3Server:
    """A server with one bucket. faults: by key, codes of the next answers to GET, each used up by one; `always`: of all
    answers. asked: GET requests by key.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *args: object) -> None:
                pass

        self.faults: dict[str, list[str]] = defaultdict(list)
        self.always: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ, start_response):
        key = environ["PATH_INFO"].removeprefix(f"/{_BUCKET}/")
        code = None
        if environ["REQUEST_METHOD"] == "GET":
            self.asked[key] += 1
            code = self.faults[key].pop(0) if self.faults[key] else self.always.get(key)
        if code is None:
            return self._app(environ, start_response)
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        start_response(_STATUS[code], [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text.encode()]

    def put(self, files: Mapping[str, Path | bytes]) -> list[str]:
        """Store objects by key; returns their addresses."""
        import fsspec

        for key, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            fsspec.filesystem("s3").pipe_file(f"{_BUCKET}/{key}", data)
        return [f"s3://{_BUCKET}/{key}" for key in files]

    def remove(self, key: str) -> None:
        import fsspec

        fsspec.filesystem("s3").rm_file(f"{_BUCKET}/{key}")

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        """Serve, with this process's s3:// leading here."""
        import fsspec
        import s3fs

        words = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in words.items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            try:
                fsspec.filesystem("s3").mkdir(_BUCKET)
                yield self
            finally:
                s3fs.S3FileSystem.clear_instance_cache()
                # All servers of a process have the same objects.
                urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST")).close()
                self._server.shutdown()
                self._server.server_close()
                thread.join()
