"""A sheet of what the loader sees of a folder of clips, and the clips that it cannot use."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mova_engine.config.buckets import NO_BUCKETS, BucketSettings
from mova_engine.config.model import ClipConfig
from mova_engine.data.bucketed import bucket_table, rows_of_sorted
from mova_engine.data.clip_buckets import sort_clips
from mova_engine.data.clip_sources import Sources, default_cache, named, read_clips
from mova_engine.data.media.contact_sheet import SheetClip, contact_sheet_png
from mova_engine.data.media.decode import Silent, probe, probe_sound, read_clip
from mova_engine.data.media.spectrogram import spectrogram_frames
from mova_engine.data.metadata import Entry
from mova_engine.errors import MovaError, counted, require_package
from mova_engine.files.atomic import write_atomic
from mova_engine.files.byte_ranges import UnreachableError


def preview(
    sources: Sources,
    clip: ClipConfig,
    out: Path,
    *,
    count: int = 24,
    silent: Silent = "refuse",
    pictures: bool = True,
    overwrite: bool = False,
    say: Callable[[str], object] = print,
    buckets: BucketSettings = NO_BUCKETS,
) -> int:
    """Write a sheet of the first `count` clips that can be read to `out`, and tell `say` of each what is used of its
    file, and of each that cannot be read why. Returns how many cannot. buckets: a sheet for each that has clips, called
    as `out` with the bucket's name.

    pictures: whether the clips have pictures; of sound alone the sheet shows spectrograms in their place.
    All clips of the folder are read, so that each that training would leave out is named. Raises MovaError if there are
    none that can be used, and if a sheet is there already.
    """
    require_package("matplotlib", "the sheet")
    entries = read_clips(sources)
    parts, left_out, table = [(clip, entries, out)], 0, list[str]()
    if buckets.given:
        found = sort_clips(entries, buckets.shapes(clip), default_cache(sources))
        table = bucket_table(rows_of_sorted(found), found.left_out)
        parts = [(x.clip, x.entries, out.with_name(f"{out.stem}-{x.name}{out.suffix}")) for x in found.used]
        left_out = found.left_out
        for identity, reason in found.reasons.items():
            say(f"not used: {identity}: {reason}")
    for _, _, path in parts:
        if os.path.lexists(path) and not overwrite:
            raise MovaError(f"{path} is there already: give another --out, or --overwrite")
    refused = [_sheet(some, shape, path, count, silent, pictures, say) for shape, some, path in parts]
    if not parts or sum(refused) + left_out == len(entries):
        raise MovaError(f"{named(sources)}: none of {counted(len(entries), 'clip')} can be used")
    for line in table:
        say(line)
    return sum(refused) + left_out


def _sheet(
    entries: Sequence[Entry],
    clip: ClipConfig,
    out: Path,
    count: int,
    silent: Silent,
    pictures: bool,
    say: Callable[[str], object],
) -> int:
    """The sheet of clips of one shape; none where none can be used. Returns how many cannot."""
    sheet, refused = list[SheetClip](), 0
    for entry in entries:
        try:
            found = read_clip(entry.path, clip, start=entry.start, silent=silent, pictures=pictures, edit=entry.edit)
        except UnreachableError:
            raise
        except MovaError as error:
            refused += 1
            say(f"not used: {entry.id}: {error}")
            continue
        if len(sheet) < count:
            used = f"{entry.start:g} to {entry.start + clip.duration:.2f} s of {_length(entry, pictures)}"
            sound = "" if found.heard else ", no sound"
            edited = "".join(f", {key} {value}" for key, value in entry.edit.facts.items())
            say(f"{entry.id}: {used}{edited}{sound}: {entry.caption or '(no caption)'}")
            text = f"{entry.id} ({used}{sound}): {entry.caption}"
            shown = found.pictures if pictures else spectrogram_frames(found.audio, clip.frames)
            sheet.append(SheetClip(shown, found.audio, text, clip.fps, clip.sample_rate))
    if sheet:
        write_atomic(out, contact_sheet_png(sheet))
        shape = f"{clip.frames} frames of {clip.height}x{clip.width} at {clip.fps:g} a second"
        shape = shape if pictures else f"{clip.duration:.2f} s of sound"
        say(f"{out}: {counted(len(sheet), 'clip')} of {len(entries)}, each {shape}; {refused} cannot be used")
    return refused


def _length(entry: Entry, pictures: bool) -> str:
    """How long a clip's file is, in seconds, and what its pictures are."""
    if not pictures:
        return f"{probe_sound(entry.path):.2f}"
    file = probe(entry.path)
    return f"{file.duration:.2f}, {file.height}x{file.width} at {file.fps:.4g} a second"
