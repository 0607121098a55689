"""Pictures and clips that clients send: from a file of a form, a data: address, or an https address where that is on.

They are decoded in the engine's reader processes, which a file can end without harm, and stored as what the engine made
of them; of a clip its bytes, which are read in the same way.
"""

import base64
import binascii
import io
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import MediaInfo, probe
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.errors import MovaError
from mova_engine.inference.requests import read_frame
from mova_engine.serving.api_errors import ApiError, bad_field
from mova_engine.serving.guarded_fetch import RefusedFetchError, fetch_public
from mova_engine.serving.request_body import SentBody, parse_json
from mova_engine.serving.service import ApiLimits

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_WHITE = re.compile(r"\s+")


@dataclass(frozen=True)
class InputFiles:
    """Reads what clients send. allow_fetch: https addresses are fetched."""

    limits: ApiLimits
    allow_fetch: bool

    def picture(self, name: str, body: SentBody, value: Any, clip: ClipConfig) -> np.ndarray | None:
        """The picture of a field, uint8 [height, width, 3] of `clip`; None: it was not sent. Raises ApiError."""
        with self._file(name, body, value, self.limits.image_bytes) as path:
            if path is None:
                return None
            return self._read(name, path, lambda: read_frame(path, replace(clip, frames=1)))

    def clip(self, name: str, body: SentBody) -> tuple[bytes, MediaInfo] | None:
        """The bytes of a clip that was sent as a file, and what it declares; None: none was sent. Raises ApiError."""
        with self._file(name, body, None, self.limits.video_bytes) as path:
            if path is None:
                return None
            found: MediaInfo = self._read(name, path, lambda: probe(path))
            if not (0 < found.duration <= 3600 and found.width > 0 and found.height > 0):
                raise bad_field(name, "the clip says no length, or more than an hour", "invalid_video")
            return Path(path).read_bytes(), found

    def first_frame(self, name: str, data: bytes, clip: ClipConfig) -> np.ndarray:
        """The first picture of a clip's bytes, uint8 [height, width, 3] of `clip`. Raises ApiError."""
        with _stored(data) as path:
            return self._read(name, path, lambda: read_frame(path, replace(clip, frames=1)))

    def _read(self, name: str, path: str, read: Any) -> Any:
        try:
            width, height = declared_size(path)
            if width * height > self.limits.pixels:
                words = f"{name} has {width}x{height} pixels, more than {self.limits.pixels}: scale it down first"
                raise bad_field(name, words, "image_too_large")
            return read()
        except MovaError as error:
            # The file's name in it is the server's.
            reason = str(error).replace(path, "").lstrip(": ")
            raise bad_field(name, f"{name} cannot be read: {reason}", "invalid_file") from None

    @contextmanager
    def _file(self, name: str, body: SentBody, value: Any, most: int) -> Iterator[str | None]:
        """A path of the file that a field means, within the with-block; None: it was not sent."""
        sent = body.files.get(name)
        if sent is not None:
            size = sent.data.seek(0, 2)
            if size > most:
                raise ApiError(413, f"{name} is larger than {most} bytes", param=name, code="file_too_large")
            if size == 0:
                raise bad_field(name, f"{name} is an empty file", "invalid_file")
            with sent.on_disk() as path:
                yield path
        elif value is None or value == "":
            yield None
        else:
            with _stored(self._of_address(name, value, most)) as path:
                yield path

    def _of_address(self, name: str, value: Any, most: int) -> bytes:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise bad_field(name, f"{name} is no JSON: {error}") from None
        if isinstance(value, dict):
            if "file_id" in value:
                raise bad_field(name, f"{name}.file_id: this server keeps no files: send the file, or image_url")
            unknown = [each for each in value if each != "image_url"]
            if unknown or not isinstance(value.get("image_url"), str):
                raise bad_field(name, f"{name} is a file, or an object with image_url")
            value = value["image_url"]
        if not isinstance(value, str):
            raise bad_field(name, f"{name} is a file, or an object with image_url")
        if value[:5].lower() == "data:":
            return _of_data(name, value, most)
        if not self.allow_fetch:
            words = f"{name}: this server fetches no addresses and takes no paths: send a file, or a data: address"
            raise bad_field(name, words, "fetch_off")
        try:
            return fetch_public(value, most)
        except RefusedFetchError as error:
            raise bad_field(name, f"{name}: {error}", "fetch_refused") from None


@contextmanager
def _stored(data: bytes) -> Iterator[str]:
    """A path under which bytes can be read, within the with-block."""
    with tempfile.NamedTemporaryFile(prefix="mova-upload-") as copy:
        copy.write(data)
        copy.flush()
        yield copy.name


def _of_data(name: str, text: str, most: int) -> bytes:
    """The bytes of a data: address in base64."""
    head = _DATA.match(text[:512])
    if head is None or not head[3]:
        raise bad_field(name, f"{name}: a data: address has the form data:image/png;base64,...", "invalid_file")
    body = text[head.end() :]
    if len(body) > most * 4 // 3 + 4096:
        raise ApiError(413, f"{name} is larger than {most} bytes", param=name, code="file_too_large")
    try:
        data = base64.b64decode(_WHITE.sub("", body), validate=True)
    except (binascii.Error, ValueError):
        raise bad_field(name, f"{name}: the data: address is no base64", "invalid_file") from None
    if not data:
        raise bad_field(name, f"{name} is an empty file", "invalid_file")
    return data


@in_reader_process
def declared_size(path: str | Path) -> tuple[int, int]:
    """(width, height) that a picture or video declares, before anything of it is decoded; (0, 0) for what says none.

    Raises MovaError for a picture of more pixels than the engine reads.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return image.size
    except Image.DecompressionBombError as error:
        raise MovaError(f"{path}: {error}") from None
    except Exception:
        # No picture of Pillow's: a video, or nothing at all, which reading it will say.
        pass
    try:
        found = probe(path)
    except MovaError:
        return 0, 0
    return found.width, found.height


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture uint8 [h, w, 3] as PNG; equal pictures give equal bytes."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()
