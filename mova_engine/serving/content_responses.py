"""Answers with a job's files: whole, in parts, or only their headers."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mova_engine.serving.api_errors import ApiError
from mova_engine.web.range_header import names_tag, parse_range

if TYPE_CHECKING:
    from fastapi import Request, Response

_PIECE = 1 << 16


def file_response(path: Path, kind: str, name: str, request: "Request") -> "Response":
    """The file as the request wants it (RFC 9110: Range, If-Range, If-None-Match, HEAD). name: for saving it.

    The file is opened once: what is sent is one version of it, also if it is replaced or deleted meanwhile. Raises
    FileNotFoundError.
    """
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    file = open(path, "rb")  # noqa: SIM115 - it is closed when it has been sent
    facts = os.fstat(file.fileno())
    size = facts.st_size
    version = f"{name}.{facts.st_ino}.{facts.st_mtime_ns}.{size}"
    tag = f'"{hashlib.sha256(version.encode()).hexdigest()[:32]}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{name}"',
    }
    if names_tag(request.headers.get("if-none-match"), tag):
        file.close()
        return Response(status_code=304, headers=headers)
    wanted = request.headers.get("range")
    if request.headers.get("if-range", tag) != tag:
        wanted = None
    try:
        part = parse_range(wanted, size)
    except ValueError:
        file.close()
        error = ApiError(416, f"the file has {size} bytes", param="Range", code="invalid_range")
        return JSONResponse(error.body(), 416, {"ETag": tag, "Content-Range": f"bytes */{size}"})
    begin, end = part or (0, size)
    headers["Content-Length"] = str(end - begin)
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    status = 200 if part is None else 206
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=kind)
    return StreamingResponse(_pieces(file, begin, end), status, headers, media_type=kind)


def _pieces(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(begin)
        while begin < end:
            data = file.read(min(_PIECE, end - begin))
            if not data:
                return  # cut short on the disk: the client sees that bytes are missing
            begin += len(data)
            yield data
