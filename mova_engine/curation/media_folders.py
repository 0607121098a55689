"""Folders of films: the files in them, and finding a file by what a list calls it."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mova_engine.data.metadata import MEDIA

# What downloaders put a film's id in, at the end of its title: "A walk [dQw4w9WgXcQ].mp4".
_BRACKETED = re.compile(r"\[([\w-]{11})\]$")


@dataclass(frozen=True)
class FoundFile:
    """A file of a folder. relative: its path from there, with "/"."""

    path: Path
    relative: str


def media_files(folder: Path) -> Iterator[FoundFile | tuple[str, str]]:
    """Yield the films and sounds of a folder and all folders in it, by their suffixes, in the order of their names, a
    folder's own files before those of the folders in it; for what cannot be read (place, reason) in its place.

    Names that begin with a dot are left out, links to folders are not followed, and what is no regular file is told.
    """
    pending = [folder]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda each: each.name)
        except OSError as error:
            yield _printable(str(place)), f"cannot be read ({error.strerror})"
            continue
        pending += [
            Path(each.path) for each in reversed(entries) if each.is_dir(follow_symlinks=False) and each.name[0] != "."
        ]
        for each in entries:
            if each.name[0] == "." or Path(each.name).suffix.lower() not in MEDIA or each.is_dir():
                continue
            if reason := _unusable(each):
                yield _printable(each.path), reason
            else:
                path = Path(each.path)
                yield FoundFile(path, path.relative_to(folder).as_posix())


def _unusable(entry: os.DirEntry[str]) -> str | None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    return None if entry.is_file() else "no regular file, or a link to none"


def _printable(name: str) -> str:
    """A name with what is no character as an escape."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class FileIndex:
    """The files of folders, by what lists call them: path, name, name without suffix, and id of the film.

    unreadable: (place, reason) of what could not be looked at.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._known: dict[str, FoundFile | None] = {}
        self.unreadable: list[tuple[str, str]] = []
        self.count = 0
        for folder in folders:
            for found in media_files(folder):
                if isinstance(found, tuple):
                    self.unreadable.append(found)
                    continue
                self.count += 1
                for key in self._keys(found.relative):
                    # None: two files are called so, and which is meant is not known.
                    self._known[key] = None if key in self._known else found

    @staticmethod
    def _keys(relative: str) -> set[str]:
        place = PurePosixPath(relative)
        keys = {relative, place.with_suffix("").as_posix(), place.name, place.stem}
        bracketed = _BRACKETED.search(place.stem)
        return keys | ({bracketed[1]} if bracketed else set())

    def find(self, name: str) -> FoundFile | None:
        """The one file that is called so, by its path in the folder or by its name alone; None: there is none, or there
        are several of that name.
        """
        for key in (name.removeprefix("./"), PurePosixPath(name).name):
            if key in self._known:
                return self._known[key]
        return None

    def ambiguous(self, name: str) -> bool:
        """Whether several files are called so."""
        return any(key in self._known and self._known[key] is None for key in (name, PurePosixPath(name).name))
