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
    """The files of folders, by what lists call them: by path or by name, with suffix or without, or by the id of the
    film. Of a file little more than its path is kept in memory.

    unreadable: (place, reason) of what could not be looked at.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        # By name without suffix: (number of the folder, path in it) of the file, or of all that are called so.
        self._known: dict[str, list[tuple[int, str]] | tuple[int, str]] = {}
        self.unreadable: list[tuple[str, str]] = []
        for number, folder in enumerate(folders):
            for found in media_files(folder):
                if isinstance(found, tuple):
                    self.unreadable.append(found)
                else:
                    self._add(number, found.relative)

    def _add(self, number: int, relative: str) -> None:
        stem = PurePosixPath(relative).stem
        bracketed = _BRACKETED.search(stem)
        for key in {stem, *(() if bracketed is None else (bracketed[1],))}:
            before = self._known.get(key)
            own = (number, relative)
            if before is None:
                self._known[key] = own
            else:
                self._known[key] = [*(before if isinstance(before, list) else [before]), own]

    def find(self, name: str) -> list[FoundFile]:
        """The files that are called so: those of this very path, else all of this name. Several are no match."""
        name = name.removeprefix("./")
        last = PurePosixPath(name).name
        found = self._called(last) or self._called(PurePosixPath(last).stem, PurePosixPath(last).suffix)
        exact = [each for each in found if name in (each.relative, str(PurePosixPath(each.relative).with_suffix("")))]
        return exact or found

    def _called(self, stem: str, suffix: str = "") -> list[FoundFile]:
        known = self._known.get(stem, [])
        every = known if isinstance(known, list) else [known]
        named = [each for each in every if not suffix or each[1].endswith(suffix)]
        return [FoundFile(self._folders[number] / relative, relative) for number, relative in named]
