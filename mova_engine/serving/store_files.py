"""The files of a store: a folder for each video, whole or not there.

STORE/serving.lock      held by the server that has a SQLite store
STORE/videos/ID/...     FILES, written to temporary names and renamed
STORE/videos/.gone-...  what is being deleted
"""

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

# What a video's folder may hold: inputs, then what a worker makes.
INPUTS = ("request.json", "first.png", "last.png", "input.mp4")
OUTPUTS = ("video.mp4", "manifest.json", "thumb.webp", "sprite.webp", "waveform.json")
FILES = (*INPUTS, *OUTPUTS, "preview.webp")
_ID = re.compile(r"video_[0-9a-f]{24}")
_GONE = ".gone-"


class StoreFiles:
    """The folder of a store. MovaError where it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.videos = folder, folder / "videos"
        self._orphans: dict[str, float] = {}
        try:
            # Prompts and clips are their clients': of what is made here, other users of the machine read nothing.
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.videos.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MovaError(f"--store {folder} cannot be made: {error.strerror or error}") from None

    def path(self, video: str, name: str) -> Path:
        """Where the file of a video is, or would be. MovaError for what is no id or no file of a video."""
        if name not in FILES:
            raise MovaError(f"'{name}' is no file of a video; known are {', '.join(FILES)}")
        return self.folder_of(video) / name

    def folder_of(self, video: str) -> Path:
        """The folder of a video. MovaError for what is no id."""
        if _ID.fullmatch(video) is None:
            raise MovaError("an id is video_ and 24 hexadecimal digits")
        return self.videos / video

    def put(self, video: str, name: str, data: bytes) -> Path:
        """Write a file of a video, whole or not at all, in its folder, which is made where it is not there."""
        path = self.path(video, name)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, data)
        return path

    def remove(self, video: str) -> None:
        """Remove a video's folder: at once for readers, by one rename, then its files."""
        gone = self.videos / f"{_GONE}{secrets.token_hex(8)}"
        try:
            self.folder_of(video).rename(gone)
        except FileNotFoundError:
            return
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self, known: set[str], grace_s: float) -> list[str]:
        """Remove folders of videos that are in no row, when they have been seen so for `grace_s` seconds (an API
        process writes a job's pictures before its row), and what is left of deleted ones. Return the ids.
        """
        now, removed = time.monotonic(), list[str]()
        found = [entry.name for entry in os.scandir(self.videos)]
        for name in found:
            if name.startswith(_GONE):
                shutil.rmtree(self.videos / name, ignore_errors=True)
        orphans = {name for name in found if _ID.fullmatch(name) and name not in known}
        self._orphans = {name: self._orphans.get(name, now) for name in orphans}
        for name, since in list(self._orphans.items()):
            if now - since >= grace_s:
                self.remove(name)
                del self._orphans[name]
                removed.append(name)
        return removed

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for this server; the lock goes with the process. MovaError if another server has it."""
        with open(self.folder / "serving.lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise MovaError(
                    f"another mova serve has the store {self.folder}: end it, take another --store, or share a "
                    "PostgreSQL database (--database postgresql://...)"
                ) from None
            yield
