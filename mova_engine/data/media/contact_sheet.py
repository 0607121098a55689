"""Contact sheets: one picture of a clip's frames, with the waveform below each row of frames on the same time axis.

The sound during a frame is drawn directly below that frame, so that sound and picture that are out of step are visible.
"""

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mova_engine.data.media.fonts import font_for
from mova_engine.errors import MovaError

# Pixels.
TILE_HEIGHT, STRIP_HEIGHT, CAPTION_HEIGHT, GAP = 96, 48, 20, 8
# Most frames shown of a single clip, and of each of several clips. Longer clips show every n-th frame.
SINGLE_TILES, SEVERAL_TILES = 48, 11
TILES_PER_ROW = 12
# Most clips in one column of the grid.
CLIPS_PER_COLUMN = 8
# The waveform is scaled by the clip's peak, but at least by this value (of full scale), so that quiet sound looks
# quiet.
LEAST_PEAK = 0.05
BACKGROUND, STRIP, WAVE, TEXT = (0, 0, 0), (22, 22, 24), (120, 195, 255), (225, 225, 225)


@dataclass(frozen=True)
class SheetClip:
    """A clip to draw. video: uint8 [f, h, w, 3] at `fps`. audio: float [n] at `sample_rate`. caption: its title.

    stride, tile_width: of a video that has every `stride`-th picture alone, as tiles of a sheet (`SheetFrames`).
    """

    video: np.ndarray
    audio: np.ndarray
    caption: str = ""
    fps: float = 24.0
    sample_rate: int = 48000
    stride: int = 1
    tile_width: int | None = None


@dataclass(frozen=True)
class SheetLayout:
    """The layout of one clip's sheet: the caption at the top, then rows of tiles, each with its strip of waveform.

    stride: every `stride`-th frame is a tile. columns, rows: of tiles. tile_width: in pixels. fps: of the clip.
    """

    stride: int
    columns: int
    rows: int
    tile_width: int
    fps: float

    @classmethod
    def of(cls, clip: SheetClip, tiles: int, per_row: int) -> "SheetLayout":
        """The layout with at most `tiles` frames, and at most `per_row` in a row."""
        frames, height, width, _ = clip.video.shape
        step = math.ceil(frames / tiles)
        shown = math.ceil(frames / step)
        rows = math.ceil(shown / per_row)
        tile = clip.tile_width or _tile_width(height, width)
        return cls(clip.stride * step, math.ceil(shown / rows), rows, tile, clip.fps)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.columns * self.tile_width, CAPTION_HEIGHT + self.rows * (TILE_HEIGHT + STRIP_HEIGHT)

    def tile(self, index: int) -> tuple[int, int]:
        """(left, top) of tile `index`, which shows frame `index * stride`."""
        row, column = divmod(index, self.columns)
        return column * self.tile_width, CAPTION_HEIGHT + row * (TILE_HEIGHT + STRIP_HEIGHT)

    def time(self, row: int, x: np.ndarray | float) -> np.ndarray | float:
        """The time in seconds at `x` pixels from the left of row `row`, for tiles and waveform."""
        return (row * self.columns + np.asarray(x) / self.tile_width) * self.stride / self.fps

    def position(self, time: float) -> tuple[int, int]:
        """(x in pixels, row) of a time in seconds."""
        tile = time * self.fps / self.stride
        row = min(int(tile // self.columns), self.rows - 1)
        return int((tile - row * self.columns) * self.tile_width), row


class SheetFrames:
    """Those pictures of a clip that a sheet shows, kept as its tiles while the clip's pictures come in parts.

    frames, height, width: of the clip. clips: how many the sheet shows.
    """

    def __init__(self, frames: int, height: int, width: int, clips: int) -> None:
        self.stride, self.tile_width = math.ceil(frames / _tiles(clips)), _tile_width(height, width)
        self._seen, self._kept = 0, list[np.ndarray]()

    def add(self, pictures: np.ndarray) -> None:
        """The next pictures, uint8 [n, h, w, 3]."""
        first = -self._seen % self.stride
        self._kept += (np.asarray(_tile(each, self.tile_width)) for each in pictures[first :: self.stride])
        self._seen += len(pictures)

    def clip(self, audio: np.ndarray, fps: float, sample_rate: int) -> SheetClip:
        """The clip as the sheet draws it, without a caption."""
        return SheetClip(np.stack(self._kept), audio, "", fps, sample_rate, self.stride, self.tile_width)


def contact_sheet(clips: Sequence[SheetClip]) -> Image.Image:
    """Draw one clip with up to 48 frames, or several clips as a grid, each with one row of up to 11 frames.

    Raises MovaError for an empty sequence and for shapes or types that SheetClip does not allow.
    """
    if not clips:
        raise MovaError("a contact sheet needs at least one clip")
    tiles = _tiles(len(clips))
    cells = [_draw(clip, SheetLayout.of(_checked(clip), tiles, TILES_PER_ROW)) for clip in clips]
    down = math.ceil(len(cells) / math.ceil(len(cells) / CLIPS_PER_COLUMN))
    columns = [cells[start : start + down] for start in range(0, len(cells), down)]
    widths = [max(cell.width for cell in column) for column in columns]
    heights = [max(cell.height for cell in cells[row::down]) for row in range(down)]
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), sum(heights) + GAP * (down - 1)), BACKGROUND)
    for i, column in enumerate(columns):
        for j, cell in enumerate(column):
            sheet.paste(cell, (sum(widths[:i]) + GAP * i, sum(heights[:j]) + GAP * j))
    return sheet


def contact_sheet_png(clips: Sequence[SheetClip]) -> bytes:
    """`contact_sheet(clips)` as PNG bytes. Raises MovaError as `contact_sheet` does."""
    buffer = io.BytesIO()
    contact_sheet(clips).save(buffer, "png")
    return buffer.getvalue()


def _tiles(clips: int) -> int:
    """The most pictures that are shown of each of so many clips."""
    return SINGLE_TILES if clips == 1 else SEVERAL_TILES


def _tile_width(height: int, width: int) -> int:
    return max(1, round(TILE_HEIGHT * width / height))


def _tile(picture: np.ndarray, width: int) -> Image.Image:
    """A picture uint8 [h, w, 3] as a tile: one pixel narrower, which leaves a line between neighbours."""
    size = (max(1, width - 1), TILE_HEIGHT)
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX)


def _checked(clip: SheetClip) -> SheetClip:
    video, audio = clip.video, clip.audio
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise MovaError(f"a contact sheet needs video uint8 [f, h, w, 3], got {video.dtype} {list(video.shape)}")
    if audio.ndim != 1:
        raise MovaError(f"a contact sheet needs mono audio [n], got {list(audio.shape)}")
    return clip


def _draw(clip: SheetClip, layout: SheetLayout) -> Image.Image:
    """Draw the sheet of one clip."""
    image = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    for index, frame in enumerate(clip.video[:: layout.stride // clip.stride]):
        image.paste(_tile(frame, layout.tile_width), layout.tile(index))
    peak = max(LEAST_PEAK, float(np.abs(clip.audio).max(initial=0.0)))
    for row in range(layout.rows):
        top = layout.tile(row * layout.columns)[1] + TILE_HEIGHT
        image.paste(Image.fromarray(_waveform(clip, layout, row, peak)), (0, top))
        draw.text((2, top), f"{layout.time(row, 0):.2f} s", fill=TEXT, font=font_for(""))
    font = font_for(clip.caption)
    draw.text((2, 2), _fitting(clip.caption, draw, font, layout.size[0] - 4), fill=TEXT, font=font)
    return image


def _waveform(clip: SheetClip, layout: SheetLayout, row: int, peak: float) -> np.ndarray:
    """The waveform below row `row`, uint8 [STRIP_HEIGHT, width, 3]: a column spans the range of its samples."""
    width = layout.size[0]
    edges = np.round(layout.time(row, np.arange(width + 1)) * clip.sample_rate).astype(int)
    # Each column has at least one sample, at any rate; the sound is padded if it is shorter than the row.
    ends = np.maximum(edges[1:], edges[:-1] + 1)
    audio = np.pad(np.nan_to_num(clip.audio).astype(np.float64) / peak, (0, max(0, int(ends[-1]) - len(clip.audio))))
    spans = [audio[start:end] for start, end in zip(edges[:-1], ends, strict=True)]
    low, high = np.array([(span.min(), span.max()) for span in spans]).T
    # Rows of pixels run from +1 at the top to -1 at the bottom.
    y = 1 - (np.arange(STRIP_HEIGHT)[:, None] + 0.5) * 2 / STRIP_HEIGHT
    half_pixel = 1 / STRIP_HEIGHT
    lit = (y >= low - half_pixel) & (y <= high + half_pixel)
    return np.where(lit[..., None], np.array(WAVE, np.uint8), np.array(STRIP, np.uint8))


def _fitting(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, truncated with an ellipsis to `width` pixels."""
    # Each character is at least one pixel wide, so longer texts need not be measured.
    text = " ".join(text.split())
    if len(text) <= width and draw.textlength(text, font=font) <= width:
        return text
    longest = bisect_right(range(min(len(text), width) + 1), width, key=lambda n: draw.textlength(text[:n] + "…", font))
    return text[: max(0, longest - 1)] + "…"
