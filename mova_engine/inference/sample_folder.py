"""The folder that sampling writes: NNN.mp4, or NNN.wav of sound alone, with manifests NNN.json, metadata.jsonl and
contact_sheet.png.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.clip_manifest import ClipManifest, manifest_path
from mova_engine.data.media.contact_sheet import SheetClip, contact_sheet_png
from mova_engine.data.metadata import FILES
from mova_engine.errors import MovaError, require_package
from mova_engine.files.writable import check_writable
from mova_engine.files.written import Written
from mova_engine.inference.encoded_clip import SHEET_CLIPS, EncodedClip, shown_clip
from mova_engine.inference.unfinished import complete_clips, read_back

LISTING, SHEET = FILES[0], "contact_sheet.png"
OPTION = "--out"
WAY_OUT = "give another --out"


class SampleFolder:
    """Writes `clips` clips one after another. A clip is listed in metadata.jsonl once its file is complete.

    sound: clips have no pictures, and are written as wav files; the sheet shows their spectrograms.
    run: a folder that a run of this name (`unfinished.run_name`, "run" of its rows) left unfinished is gone on with:
    `written` is then the number of its clips.
    overwrite: remove the samples that the folder holds when the first new one is written; otherwise they are an error.
    Only files that sampling has written and nobody has changed since are replaced. The constructor raises MovaError if
    another file is in the way, or if the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        shape: ClipConfig,
        clips: int,
        overwrite: bool = False,
        sound: bool = False,
        run: str | None = None,
    ) -> None:
        require_package("matplotlib", f"the contact sheet, {SHEET},")
        self.folder, self.shape, self._suffix = Path(folder), shape, "wav" if sound else "mp4"
        self.clips = clips
        self.written = 0
        self._old: list[str] = []
        self._sheet: list[SheetClip] = []
        check_writable(self.folder, OPTION)
        self._record = Written(self.folder, "sample")
        clip_names = [self._name(index) for index in range(clips)]
        names = [LISTING, SHEET, *clip_names, *(manifest_path(name).name for name in clip_names)]
        # A folder with two metadata files could not be read.
        for other in (name for name in FILES if name != LISTING and os.path.lexists(self.folder / name)):
            raise MovaError(f"{self.folder} holds clips that are listed in {other}: {WAY_OUT}")
        self._record.check(names, WAY_OUT)
        self._listed = hashlib.sha256()
        if not overwrite and run is not None and self._goes_on(run, clips):
            return
        if not overwrite and any(os.path.lexists(self.folder / name) for name in names):
            raise MovaError(f"{folder} already holds samples: give another folder, or --overwrite")
        self._old = list(self._record.names)

    def _goes_on(self, run: str, clips: int) -> bool:
        """Whether the folder holds the first clips of a run of this name, which are then those that were written."""
        rows = complete_clips(self.folder / LISTING, run)
        if not rows or len(rows) > clips or (self.folder / SHEET).exists():
            return False
        if not all(self._record.is_own(str(row["video_path"])) for row in rows):
            return False
        self._listed.update((self.folder / LISTING).read_bytes())
        self.written = len(rows)
        for row in rows[:SHEET_CLIPS]:
            clip = read_back(self.folder / row["video_path"], self.shape)
            if clip is not None:
                self._show(shown_clip(clip, self.shape, clips), row["caption"])
        return True

    def add(
        self,
        clip: EncodedClip,
        caption: str,
        facts: Mapping[str, Any],
        described: Callable[[str, bytes], tuple[bytes, ClipManifest]] | None = None,
    ) -> Path:
        """Write one clip and its metadata row: `video_path`, `caption` and `facts`. Returns the path of its file.

        described: makes of a name and a file's content the file as it is written, signed, and its manifest, which is
        written beside it; None: the file is written as it is, without one.
        """
        try:
            while self._old:
                self._record.remove(self._old.pop())
        except OSError as error:
            raise MovaError(f"cannot replace {error.filename}: {error.strerror}") from None
        name, data = self._name(self.written), clip.data
        if described is not None:
            data, manifest = described(name, data)
            self._record.write(manifest_path(name).name, manifest.to_bytes(), WAY_OUT, sync=False)
        try:
            path = self._record.write(name, data, WAY_OUT, sync=False)
        except BaseException:
            # A run that is stopped here leaves no manifest without its clip.
            if described is not None:
                self._record.remove(manifest_path(name).name)
            raise
        self._list(json.dumps({"video_path": name, "caption": caption, **facts}, ensure_ascii=False) + "\n")
        self.written += 1
        self._show(clip.sheet, caption)
        return path

    def _show(self, clip: SheetClip, caption: str) -> None:
        """On the contact sheet, as long as there is room."""
        if len(self._sheet) < SHEET_CLIPS:
            self._sheet.append(replace(clip, caption=caption))

    def _name(self, index: int) -> str:
        return f"{index:03d}.{self._suffix}"

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
