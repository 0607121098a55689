"""Contact sheets of clips that filters drop: their pictures with the sound below, read from the films."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.curation.accepted_clips import AcceptedClip
from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_file import ClipFile
from mova_engine.data.media.contact_sheet import SEVERAL_TILES, TILE_HEIGHT, SheetClip, contact_sheet
from mova_engine.data.text import shown
from mova_engine.errors import MovaError
from mova_engine.scores.clip_reader import read_clip

_CROP = ("crop_x", "crop_y", "crop_width", "crop_height")
_PLACE = ("clip_id", "name", "video_path", "start", "frames", "fps", "width", "height", *_CROP)
_RATE = 16000


@dataclass(frozen=True)
class DroppedSheet:
    """picture: of the clips that could be read, from the top down, as an address that a page takes; "": of none.
    titles: of these clips. unreadable: why not of the others.
    """

    picture: str = ""
    titles: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def dropped_clips(file: ClipFile, each: int) -> dict[str, list[dict[str, Any]]]:
    """{filter: rows of clips that it drops}, `each` at most. Identities are hashes: the least ones are drawn at random,
    and are the same ones each time.
    """
    pc = compute()
    found: dict[str, list[dict[str, Any]]] = {one.name: [] for one in file.judging.judge.filters}
    numbers = [name for one in file.judging.judge.filters for name in one.columns]
    for table in file.tables([*_PLACE, "verdict", "dropped_by", *numbers]):
        dropped = table.filter(pc.equal(table["verdict"].cast("string"), "drop"))
        for name, rows in found.items():
            some = dropped.filter(pc.equal(dropped["dropped_by"].cast("string"), name)).sort_by("clip_id")
            rows += some.slice(0, each).to_pylist()
    return {name: sorted(rows, key=lambda row: row["clip_id"])[:each] for name, rows in found.items()}


def dropped_sheet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], out: Path) -> DroppedSheet:
    """The sheet of some clips. columns: numbers that their titles tell. out: what films' paths may be relative to."""
    clips: list[SheetClip] = []
    unreadable: list[str] = []
    for row in rows:
        told = ", ".join(f"{name} {_value(row.get(name))}" for name in columns)
        title = f"{row['clip_id'][:8]} {shown(row['name'])} {row['start']:.2f} s: {told}"
        try:
            clips.append(_sheet_clip(row, title, out))
        except MovaError as error:
            unreadable.append(str(error))
    if not clips:
        return DroppedSheet(unreadable=tuple(unreadable))
    buffer = io.BytesIO()
    contact_sheet(clips).save(buffer, "WEBP", quality=70)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return DroppedSheet(address, tuple(clip.caption for clip in clips), tuple(unreadable))


def _sheet_clip(row: Mapping[str, Any], title: str, out: Path) -> SheetClip:
    seconds = row["frames"] / row["fps"]
    listed = AcceptedClip.of(row)
    # Its film is decoded in a process of its own, which it cannot take this one with.
    clip = read_clip(out / listed.path, start=listed.start, seconds=seconds, crop=listed.edit.crop)
    height, width = clip.size
    fps = SEVERAL_TILES / seconds
    pictures = clip.pictures_at(fps, TILE_HEIGHT, max(2, round(TILE_HEIGHT * width / height / 2) * 2))
    # The last picture stays to the end, though the next one's time may be an instant too late.
    pictures = np.concatenate([pictures, pictures[-1:]])[:SEVERAL_TILES]
    try:
        sound = np.asarray(clip.sound_with_pictures(_RATE), np.float32)
    except MovaError:
        sound = np.zeros(round(seconds * _RATE), np.float32)
    return SheetClip(pictures, sound[: round(seconds * _RATE)], title, fps, _RATE)


def _value(value: object) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
