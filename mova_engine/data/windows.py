"""Several clips of one file: windows that begin at equal distances."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_sources import LISTED, Sources, named, read_clips
from mova_engine.data.media.decode import probe, probe_sound
from mova_engine.data.metadata import Entry
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import UnreachableError

# Seconds by which a file's declared length may fall short of a window: files round it.
ROUNDING = 1e-3


def list_clips(
    sources: Sources, cache: Path, clip: ClipConfig, cut_every: float | None = None, pictures: bool = True
) -> Sequence[Entry]:
    """The clips of folders and manifests, see `read_clips`; with `cut_every` those that `cut_windows` makes of them.

    cache: the folder of encoded clips, for lists of many. Raises MovaError as `read_clips`, and for `cut_every` with
    such a list.
    """
    entries = read_clips(sources, cache)
    if cut_every is None:
        return entries
    if len(entries) > LISTED:
        raise MovaError(
            f"{named(sources)}: loader.cut_every opens each file to learn how long it is, and here are "
            f"{len(entries)}: list the clips with their `start` instead"
        )
    return cut_windows(entries, clip, cut_every, pictures)


def cut_windows(entries: Sequence[Entry], clip: ClipConfig, every: float, pictures: bool = True) -> list[Entry]:
    """Of each clip of the list, those that begin 0, 1, 2, ... times `every` seconds after it and end before its file
    does, by the length that the file declares. The first is there in any case.

    The id of the others is that of the first with `@START`. pictures: whether the clips have pictures; without them
    files of sound have a length too. Files that cannot be read stay as they are, to be reported when they are used.
    Raises UnreachableError if a file's place does not answer.
    """
    found: list[Entry] = []
    for entry in entries:
        try:
            length = probe(entry.path).duration if pictures else probe_sound(entry.path)
        except UnreachableError:
            raise  # fewer windows would be another list of clips
        except MovaError:
            length = 0.0
        left = length + ROUNDING - clip.duration - entry.start
        more = max(0, math.floor(left / every))
        starts = [round(entry.start + every * k, 6) for k in range(more + 1)]
        found += [entry, *(_begun_at(entry, start) for start in starts[1:])]
    return found


def _begun_at(entry: Entry, start: float) -> Entry:
    """The window of a clip's file that begins at `start`."""
    shown = entry.shown and entry.shown._replace(seconds=entry.shown.seconds - (start - entry.start))
    return replace(entry, id=f"{entry.id}@{start:.15g}", start=start, shown=shown)
