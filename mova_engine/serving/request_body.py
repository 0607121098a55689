"""What a request sends: JSON or a form, read piece by piece and never further than the limit.

Forms have the fields that OpenAI's client writes for nested values: `x_mova[seed]`, `input_reference[image_url]`,
`sigmas[]`. Fields and files of equal content have equal hashes, however they were sent.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from mova_engine.serving.api_errors import ApiError

if TYPE_CHECKING:
    from fastapi import Request

JSON, FORM, PLAIN_FORM = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
# Fields of a request, files among them, and how deep values may be nested.
_MOST_FIELDS, _MOST_FILES, _DEEPEST = 200, 4, 4
# Characters of a JSON text that may begin a value, commas in prompts too: an empty list of 3 bytes takes 56 in memory.
_MOST_VALUES = 200_000
_KEY = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_PIECE = 1 << 20


@dataclass(frozen=True)
class UploadedFile:
    """A file of a form. data: an open file, on the disk where it is large."""

    data: Any
    digest: str

    @contextmanager
    def on_disk(self) -> Iterator[str]:
        """A path under which the file can be read, within the with-block."""
        with NamedTemporaryFile(prefix="mova-upload-") as copy:
            self.data.seek(0)
            while piece := self.data.read(_PIECE):
                copy.write(piece)
            copy.flush()
            yield copy.name


@dataclass(frozen=True)
class SentBody:
    """Fields by name, nested as sent, and files by the field's name."""

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    files: dict[str, UploadedFile] = field(default_factory=dict[str, UploadedFile])

    def digest(self, *more: str) -> str:
        """A hash of the content and of `more`."""
        files = {name: each.digest for name, each in self.files.items()}
        text = json.dumps([self.fields, files, more], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def close(self) -> None:
        """Drop the files."""
        for each in self.files.values():
            each.data.close()


async def read_body(request: "Request", most_bytes: int, most_field_bytes: int, seconds: float) -> SentBody:
    """The body of a request. Raises ApiError for another kind of content, for what is too large, damaged, or takes
    longer than `seconds`, with the status of HTTP that says which.
    """
    from starlette.requests import ClientDisconnect

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most_bytes:
        raise _too_large(most_bytes)
    try:
        async with asyncio.timeout(seconds):
            if kind == JSON:
                return await _json(request, most_bytes)
            if kind in (FORM, PLAIN_FORM):
                return await _form(request, kind, most_bytes, most_field_bytes)
            if not kind and stated in ("", "0"):
                return SentBody()
    except TimeoutError:
        raise ApiError(408, f"the request was not there within {seconds:g} s", code="request_timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the request broke off", code="incomplete_body") from None
    raise ApiError(415, f"send {JSON} or {FORM}", code="unsupported_content_type")


def _too_large(most_bytes: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most_bytes} bytes", code="request_too_large")


async def _limited(request: "Request", most_bytes: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most_bytes:
            raise _too_large(most_bytes)
        yield piece


async def _json(request: "Request", most_bytes: int) -> SentBody:
    data = bytearray()
    async for piece in _limited(request, most_bytes):
        data += piece
    try:
        found = await asyncio.to_thread(parse_json, bytes(data))
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON that can be read: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return SentBody(found)


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text. ValueError for what is none: also numbers beyond JSON, names that are there twice,
    values nested too deep or too many, half characters.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        if sum(text.count(each) for each in ",[{") > _MOST_VALUES:
            raise ValueError("it has too many values")
        found = json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
        json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeError:
        raise ValueError("it is not UTF-8, or holds half a character") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


async def _form(request: "Request", kind: str, most_bytes: int, most_field_bytes: int) -> SentBody:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

    stream = _limited(request, most_bytes)
    more: dict[str, Any] = {"max_fields": _MOST_FIELDS, "max_part_size": most_field_bytes}
    try:
        if kind == FORM:
            form = await MultiPartParser(request.headers, stream, max_files=_MOST_FILES, **more).parse()
        else:
            form = await FormParser(request.headers, stream, **more).parse()
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    except ApiError:
        raise
    except Exception as error:
        # What the parser says of a damaged form is of several kinds.
        raise ApiError(400, f"the form cannot be read: {type(error).__name__}", code="invalid_form") from None
    body = SentBody()
    for key, value in form.multi_items():
        if isinstance(value, UploadFile):
            if key in body.files or key in body.fields:
                raise ApiError(400, f"the field '{key[:80]}' is there twice", param=key[:80], code="duplicate_field")
            digest = await asyncio.to_thread(_digest, value.file)
            body.files[key] = UploadedFile(value.file, digest)
        else:
            # Browsers send the ends of lines in a form as CR LF, whatever was typed: the same words are the same clip.
            _put(body.fields, key, value.replace("\r\n", "\n"))
    return body


def _digest(file: Any) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _put(fields: dict[str, Any], key: str, value: str) -> None:
    """Put a form's field where its brackets say."""
    match, short = _KEY.fullmatch(key), key[:80]
    names = re.findall(r"\[([^\[\]]*)\]", match[2]) if match else []
    if match is None or len(names) > _DEEPEST:
        raise ApiError(400, f"'{short}' is no name of a field", param=short, code="unknown_field")
    place: Any = fields
    way = [match[1], *names]
    for name, following in zip(way, [*way[1:], None], strict=True):
        last, is_list = following is None, following == ""
        if isinstance(place, list):
            place.append(value)
            return
        if not isinstance(place, dict) or (last and name in place):
            raise ApiError(400, f"the field '{short}' is there twice", param=short, code="duplicate_field")
        if last:
            place[name] = value
            return
        place = place.setdefault(name, [] if is_list else {})
