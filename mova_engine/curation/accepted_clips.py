"""Accepted clips, as rows of clips.parquet name them, and the list by which training reads them from their films."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_edit import ClipEdit
from mova_engine.data.metadata import FILES
from mova_engine.data.text import flaw
from mova_engine.files.atomic import whole_file

LISTING = FILES[0]


@dataclass(frozen=True)
class AcceptedClip:
    """A clip that is kept: `start` seconds after the first picture of the film `path`. size: width and height of its
    pictures as they are shown, after crop and pad.
    """

    id: str
    path: Path
    start: float
    caption: str
    size: tuple[int, int]
    edit: ClipEdit

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "AcceptedClip":
        """The clip of a row of clips.parquet. A column that is null, or is not there, is a value that is not meant."""
        size: tuple[int, int] = (row["width"], row["height"])
        crop = None
        if row.get("crop_x") is not None:
            crop = row["crop_x"], row["crop_y"], row["crop_width"], row["crop_height"]
        pad = None if row.get("pad_width") is None else (row["pad_width"], row["pad_height"])
        edit = ClipEdit(crop, float(row.get("sound_shift") or 0), float(row.get("gain_db") or 0), pad)
        path, caption = Path(row["video_path"]), row.get("caption") or ""
        return cls(row["clip_id"], path, row["start"], caption, edit.shown_size(*size), edit)

    def shape(self, shape: ClipConfig) -> ClipConfig:
        """The run's clips in this one's orientation: a picture that is higher than wide gets the shape turned."""
        (width, height), turned = self.size, shape.height > shape.width
        return shape if (height > width) == turned else replace(shape, height=shape.width, width=shape.height)


def virtual_row(clip: AcceptedClip, seconds: float) -> dict[str, Any]:
    """The clip, of this length, as a row of a list that training reads, from the film itself."""
    row = {"video_path": str(clip.path.absolute()), "caption": clip.caption, "id": clip.id, "start": clip.start}
    size = {"width": clip.size[0], "height": clip.size[1], "duration": seconds}
    return {**row, **clip.edit.facts, **size}


def unlistable(clip: AcceptedClip, virtual: bool) -> str | None:
    """Why a clip cannot stand in a list; None if it can. virtual: whether the list names the film."""
    if virtual and (reason := flaw(str(clip.path.absolute()), name=True)):
        return f"the name of its film {reason}: rename it, or write the clip (--write mp4)"
    return f"its caption {reason}" if (reason := flaw(clip.caption)) else None


def write_listing(out: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write the list of a folder of clips, whole or not at all; returns the number of its rows."""
    count = 0
    with whole_file(out / LISTING) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_virtual(out: Path, clips: Iterable[AcceptedClip], shape: ClipConfig) -> dict[str, str]:
    """List clips that stay in their films in `out`; returns {id: why} of those that cannot be listed."""
    clips = list(clips)
    refused = {clip.id: reason for clip in clips if (reason := unlistable(clip, virtual=True))}
    write_listing(out, (virtual_row(clip, shape.duration) for clip in clips if clip.id not in refused))
    return refused
