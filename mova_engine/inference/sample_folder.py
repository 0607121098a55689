"""The output folder of sampling: NNN.mp4, metadata.jsonl (so that it is a folder of clips) and contact_sheet.png."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.contact_sheet import SheetClip, contact_sheet_png
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.write import encode_mp4
from mova_engine.data.metadata import FILES
from mova_engine.errors import MovaError, require_package
from mova_engine.files.writable import check_writable
from mova_engine.files.written import Written

LISTING, SHEET = FILES[0], "contact_sheet.png"
# The contact sheet shows at most this many clips.
SHEET_CLIPS = 24
OPTION = "--out"
WAY_OUT = "give another --out"


class SampleFolder:
    """Writes `clips` clips one after another. A clip is listed in metadata.jsonl once its file is complete.

    overwrite: remove the samples that the folder holds when the first new one is written; otherwise they are an error.
    Only files that sampling has written and nobody has changed since are replaced. The constructor raises MovaError if
    another file is in the way, or if the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, shape: ClipConfig, clips: int, overwrite: bool = False) -> None:
        require_package("matplotlib", f"the contact sheet, {SHEET},")
        self.folder, self.shape = Path(folder), shape
        self.written = 0
        self._sheet: list[SheetClip] = []
        check_writable(self.folder, OPTION)
        self._record = Written(self.folder, "sample")
        names = [LISTING, SHEET, *map(_name, range(clips))]
        # A folder with two metadata files could not be read.
        for other in (name for name in FILES if name != LISTING and os.path.lexists(self.folder / name)):
            raise MovaError(f"{self.folder} holds clips that are listed in {other}: {WAY_OUT}")
        self._record.check(names, WAY_OUT)
        if not overwrite and any(os.path.lexists(self.folder / name) for name in names):
            raise MovaError(f"{folder} already holds samples: give another folder, or --overwrite")
        self._old = list(self._record.names)
        self._listed = hashlib.sha256()

    def add(self, clip: Clip, caption: str, facts: Mapping[str, Any]) -> Path:
        """Write one clip and its metadata row: `video_path`, `caption` and `facts`. Returns the path of the mp4."""
        try:
            while self._old:
                self._record.remove(self._old.pop())
        except OSError as error:
            raise MovaError(f"cannot replace {error.filename}: {error.strerror}") from None
        name = _name(self.written)
        shape = {"fps": self.shape.fps, "sample_rate": self.shape.sample_rate}
        data = encode_mp4(self.folder / name, clip.pictures, clip.audio, **shape)
        path = self._record.write(name, data, WAY_OUT, sync=False)
        self._list(json.dumps({"video_path": name, "caption": caption, **facts}, ensure_ascii=False) + "\n")
        self.written += 1
        if len(self._sheet) < SHEET_CLIPS:
            self._sheet.append(SheetClip(clip.pictures, clip.audio, caption, self.shape.fps, self.shape.sample_rate))
        return path

    def finish(self) -> Path:
        """Write the contact sheet of the clips (the first 24 of them) and return its path."""
        return self._record.write(SHEET, contact_sheet_png(self._sheet), WAY_OUT)

    def _list(self, line: str) -> None:
        path = self.folder / LISTING
        if self.written == 0:
            self._record.check([LISTING], WAY_OUT)
        self._listed.update(line.encode())
        self._record.add(LISTING, self._listed.hexdigest())
        try:
            # A single write, so that a killed process leaves no partial row.
            with open(path, "ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise MovaError(f"cannot write {path}: {error.strerror or error}") from None


def _name(index: int) -> str:
    return f"{index:03d}.mp4"
