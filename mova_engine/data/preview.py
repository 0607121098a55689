"""A sheet of what the loader sees of a folder of clips, and the clips that it cannot use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_sources import Sources, named, read_clips
from mova_engine.data.media.contact_sheet import SheetClip, contact_sheet_png
from mova_engine.data.media.decode import probe, read_clip
from mova_engine.errors import MovaError, counted, require_package
from mova_engine.files.atomic import write_atomic
from mova_engine.files.byte_ranges import UnreachableError


def preview(
    sources: Sources,
    clip: ClipConfig,
    out: Path,
    *,
    count: int = 24,
    silent: Literal["refuse", "zeros", "mask"] = "refuse",
    overwrite: bool = False,
    say: Callable[[str], object] = print,
) -> int:
    """Write a sheet of the first `count` clips that can be read to `out`, and tell `say` of each what is used of its
    file, and of each that cannot be read why. Returns how many cannot.

    All clips of the folder are read, so that each that training would leave out is named. Raises MovaError if there are
    none that can be used, and if `out` is there already.
    """
    require_package("matplotlib", "the sheet")
    if os.path.lexists(out) and not overwrite:
        raise MovaError(f"{out} is there already: give another --out, or --overwrite")
    entries, sheet, refused = read_clips(sources), list[SheetClip](), 0
    for entry in entries:
        try:
            found = read_clip(entry.path, clip, start=entry.start, silent=silent)
        except UnreachableError:
            raise
        except MovaError as error:
            refused += 1
            say(f"not used: {entry.id}: {error}")
            continue
        if len(sheet) < count:
            file = probe(entry.path)
            used = f"{entry.start:g} to {entry.start + clip.duration:.2f} s of {file.duration:.2f}"
            used += f", {file.height}x{file.width} at {file.fps:.4g} a second"
            sound = "" if found.heard else ", no sound"
            say(f"{entry.id}: {used}{sound}: {entry.caption or '(no caption)'}")
            text = f"{entry.id} ({used}{sound}): {entry.caption}"
            sheet.append(SheetClip(found.pictures, found.audio, text, clip.fps, clip.sample_rate))
    if not sheet:
        raise MovaError(f"{named(sources)}: none of {counted(len(entries), 'clip')} can be used")
    write_atomic(out, contact_sheet_png(sheet))
    shape = f"{clip.frames} frames of {clip.height}x{clip.width} at {clip.fps:g} a second"
    say(f"{out}: {counted(len(sheet), 'clip')} of {len(entries)}, each {shape}; {refused} cannot be used")
    return refused
