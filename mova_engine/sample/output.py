"""The folder that sampling writes: NNN.mp4, metadata.jsonl (readable as a folder of clips) and contact_sheet.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.config import ClipConfig
from mova_engine.data.decode import Clip
from mova_engine.data.encode import write_mp4
from mova_engine.errors import MovaError, require_package
from mova_engine.sample.contact_sheet import SheetClip, write_contact_sheet

LISTING, SHEET = "metadata.jsonl", "contact_sheet.png"
# A sheet of more clips is too large to look at.
SHEET_CLIPS = 24


class SampleFolder:
    """Writes clips one after another; a clip is listed in metadata.jsonl once its file is complete.

    overwrite: the samples that the folder holds already make room for the first new one; without it they are an error.
    """

    def __init__(self, folder: str | Path, shape: ClipConfig, overwrite: bool = False) -> None:
        require_package("matplotlib", f"the contact sheet, {SHEET},")
        self.folder, self.shape = Path(folder), shape
        self.written = 0
        self._sheet: list[SheetClip] = []
        listing = self.folder / LISTING
        if listing.exists() and not overwrite:
            raise MovaError(f"{folder} already holds samples ({LISTING}): give another folder, or --overwrite")
        self._old = [listing, *_listed(listing), self.folder / SHEET] if listing.exists() else []

    def add(self, clip: Clip, caption: str, facts: Mapping[str, Any]) -> Path:
        """Write one clip; its row holds `video_path`, `caption` and `facts`. Returns the mp4's path."""
        try:
            while self._old:
                self._old.pop().unlink(missing_ok=True)
        except OSError as error:
            raise MovaError(f"cannot replace {error.filename}: {error.strerror}") from None
        path = self.folder / f"{self.written:03d}.mp4"
        write_mp4(path, clip.video, clip.audio, fps=self.shape.fps, sample_rate=self.shape.sample_rate)
        try:
            with open(self.folder / LISTING, "a", encoding="utf-8") as file:
                row = {"video_path": path.name, "caption": caption, **facts}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise MovaError(f"cannot write {self.folder / LISTING}: {error.strerror or error}") from None
        self.written += 1
        if len(self._sheet) < SHEET_CLIPS:
            self._sheet.append(SheetClip(clip.video, clip.audio, caption, self.shape.fps, self.shape.sample_rate))
        return path

    def finish(self) -> Path:
        """Write the contact sheet of the clips (the first 24 of them) and return its path."""
        write_contact_sheet(self.folder / SHEET, self._sheet)
        return self.folder / SHEET


def _listed(listing: Path) -> list[Path]:
    """Files of an earlier run, by the names that this class gives them."""
    found = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        try:
            name = json.loads(line)["video_path"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise MovaError(f"{listing} was not written by the sampler; it is not overwritten") from None
        if not (name.endswith(".mp4") and name[:-4].isdigit()):
            raise MovaError(f"{listing} lists {name}, which the sampler did not write; it is not overwritten")
        found.append(listing.parent / name)
    return found
