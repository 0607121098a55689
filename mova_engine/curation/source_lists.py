"""Which films a run takes its clips from: folders, and published lists of clips with the folders that hold their files.

A list names clips that somebody has to have fetched: those whose files are not there are counted, which is no error
unless none is. Bad rows are counted by their reasons.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine.config.data_mix import WeightedFolder, parse_mix
from mova_engine.curation.list_rows import SUFFIXES, BadRowError, list_rows
from mova_engine.curation.media_folders import FileIndex, FoundFile, media_files
from mova_engine.curation.source_formats import ListedClip, SourceFormat, source_formats
from mova_engine.curation.units import SourceFile
from mova_engine.data.metadata import CAPTION, listing_of
from mova_engine.data.text import flaw, shown
from mova_engine.errors import MovaError, counted

# Bytes of a caption beside a film: more is no caption.
LARGEST_CAPTION = 1 << 20
# Reasons that are told of what could not be used.
TOLD = 8


@dataclass(frozen=True)
class SourceOfFilms:
    """What a folder or a list gives. weight: None where none was given. form: of a list, its format. listed: the clips
    that it names. missing: those of them whose files are not there. bad: rows, folders and files that cannot be used,
    by reason, with one place of each in `where`.
    """

    name: str
    path: Path
    files: tuple[SourceFile, ...]
    weight: float | None = None
    form: str = "folder"
    listed: int = 0
    missing: int = 0
    bad: Counter[str] = field(default_factory=Counter[str])
    where: dict[str, str] = field(default_factory=dict[str, str])

    def lines(self) -> Iterator[str]:
        """What there is to say of it, for people."""
        of = f" of {counted(self.listed, 'listed clip')}, {self.missing} not there" if self.listed else ""
        yield f"{self.name} ({self.form}): {counted(len(self.files), 'film')}{of}"
        for reason, count in self.bad.most_common(TOLD):
            yield f"  {count} not used: {reason} ({self.where[reason]})"


def read_sources(raw: Sequence[Path], media: Sequence[Path] = ()) -> list[SourceOfFilms]:
    """The films of folders and lists, in their order.

    raw: folders, which are searched with all folders in them unless a metadata file lists their clips, and lists; each
    may have a weight after a colon ("films:3"), for `source_mixture`. media: the folders with the files of lists;
    without any, the list's own. Raises MovaError for what is not there, a list of no known format, and a source that
    gives no film.
    """
    if not raw:
        raise MovaError("no films: name folders or lists of them")
    # What is there by its whole name has no weight, whatever stands after its last colon.
    whole = [path.exists() for path in raw]
    named = parse_mix([f"{path}:1" if there else str(path) for path, there in zip(raw, whole, strict=True)])
    for folder in (*media, *(each.path for each in named)):
        if not folder.exists():
            raise MovaError(f"{folder}: no such file or folder")
    if flat := next((folder for folder in media if not folder.is_dir()), None):
        raise MovaError(f"{flat}: a file, where a folder with the files of lists is wanted")
    index = FileIndex(media) if media and not all(each.path.is_dir() for each in named) else None
    found = list[SourceOfFilms]()
    for each, there in zip(named, whole, strict=True):
        weight = None if there else each.weight
        if not each.path.is_dir():
            found.append(_list(each, weight, index))
        elif listed := listing_of(each.path):
            found.append(_list(each._replace(path=listed), weight, None))
        else:
            found.append(_folder(each, weight))
    return found


def _folder(given: WeightedFolder, weight: float | None) -> SourceOfFilms:
    source, files = given.name, list[SourceFile]()
    bad, where = Counter[str](), dict[str, str]()
    for found in media_files(given.path):
        if isinstance(found, tuple):
            _note(bad, where, found[1], found[0])
            continue
        caption, reason = _caption(found.path.with_suffix(CAPTION))
        if reason:
            _note(bad, where, f"the caption beside it {reason}, and is left out", found.relative)
        files.append(SourceFile(found.path, f"{source}/{found.relative}", source, caption))
    if not files:
        why = f": {next(iter(bad))} ({next(iter(where.values()))})" if bad else ""
        raise MovaError(f"{given.path}: holds no films{why}")
    return SourceOfFilms(source, given.path, tuple(files), weight, bad=bad, where=where)


def _caption(path: Path) -> tuple[str, str]:
    """(what a text beside a film says, why it is not used)."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_CAPTION + 1)
        text = data.decode("utf-8-sig").strip()
    except FileNotFoundError:
        return "", ""
    except (OSError, UnicodeDecodeError):
        return "", "cannot be read as UTF-8"
    if len(data) > LARGEST_CAPTION:
        return "", "is larger than 1 MiB"
    return ("", str(reason)) if (reason := flaw(text)) else (text, "")


def _list(given: WeightedFolder, weight: float | None, media: FileIndex | None) -> SourceOfFilms:
    form = format_of(given.path)
    index = media or FileIndex([given.path.parent])
    files, names = list[SourceFile](), set[str]()
    bad, where = Counter[str](), dict[str, str]()
    for place, reason in index.unreadable:
        _note(bad, where, reason, place)
    listed = missing = 0
    for place, clips in _clips_of(given.path, form):
        if isinstance(clips, BadRowError):
            _note(bad, where, str(clips), place)
            continue
        for clip in clips:
            listed += 1
            found, span, several = _located(clip, index)
            if found is None:
                missing += 1
                if several:
                    _note(bad, where, f"several files are called so: name fewer folders: {shown(several)}", place)
                continue
            name = f"{given.name}/{found.relative}" + (f"@{span[0]:.15g}-{span[1]:.15g}" if span else "")
            if name in names:
                _note(bad, where, "the same clip of the same film is listed before", place)
                continue
            names.add(name)
            reason = flaw(clip.caption)
            if reason:
                _note(bad, where, f"its caption {reason}, and is left out", place)
            caption = "" if reason else clip.caption
            files.append(SourceFile(found.path, name, given.name, caption, span, clip.facts))
    if not files:
        of = f"none of {counted(listed, 'listed clip')} is there" if listed else "lists no clips"
        why = f"; {next(iter(bad))} ({next(iter(where.values()))})" if bad else ""
        hint = ": name the folder of its files with --films.media" if listed and media is None else ""
        raise MovaError(f"{given.path} ({form.name}): {of}{hint}{why}")
    return SourceOfFilms(given.name, given.path, tuple(files), weight, form.name, listed, missing, bad=bad, where=where)


def format_of(path: Path) -> SourceFormat:
    """The format of a list, by its first row. Raises MovaError for a file of no known one."""
    first = next((row for _, row in list_rows(path) if not isinstance(row, BadRowError)), None)
    cells: list[str] = []
    if path.suffix.lower() == ".csv":
        cells = next((row for _, row in list_rows(path, head=False) if not isinstance(row, BadRowError)), [])
    for form in source_formats():
        if form.recognises(path, first, cells):
            return form
    known = "; ".join(f"{form.name}: {form.looks}" for form in source_formats())
    raise MovaError(f"{path}: a list ({', '.join(SUFFIXES)}) of no known format; known are {known}")


def _clips_of(path: Path, form: SourceFormat) -> Iterator[tuple[str, list[ListedClip] | BadRowError]]:
    for place, row in list_rows(path, head=form.head):
        if isinstance(row, BadRowError):
            yield place, row
            continue
        try:
            yield place, form.clips(row)
        except BadRowError as error:
            yield place, error


def _located(clip: ListedClip, index: FileIndex) -> tuple[FoundFile | None, Any, str]:
    """(the file of a clip, the part of it that is meant, the name that several files have)."""
    several = ""
    for name, span in (*((name, None) for name in clip.names), (clip.film, clip.span)):
        found = index.find(name) if name else []
        if len(found) == 1:
            return found[0], span, ""
        several = several or (name if found else "")
    return None, None, several


def _note(bad: Counter[str], where: dict[str, str], reason: str, place: str) -> None:
    bad[reason] += 1
    where.setdefault(reason, shown(place))
