"""Contact sheets: a clip's frames in order of time with its waveform beneath them, as one picture.

Under every row of frames runs a strip of waveform on the same clock: what is heard while a frame is on display is drawn
right below it, so that a click that misses its bounce is seen at a glance.
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
# Frames of one clip, and of each of several: more than these are thinned evenly.
SINGLE_TILES, SEVERAL_TILES = 48, 11
TILES_PER_ROW = 12
# Clips below each other before a grid takes a second column.
CLIPS_PER_COLUMN = 8
# Sound is drawn to the clip's own peak, but one quieter than this (of full scale) is shown as quiet.
LEAST_PEAK = 0.05
BACKGROUND, STRIP, WAVE, TEXT = (0, 0, 0), (22, 22, 24), (120, 195, 255), (225, 225, 225)


@dataclass(frozen=True)
class SheetClip:
    """Pictures uint8 [f, h, w, 3] at `fps`, mono sound float [n] at `sample_rate`, and the words to put above them."""

    video: np.ndarray
    audio: np.ndarray
    caption: str = ""
    fps: float = 24.0
    sample_rate: int = 48000


@dataclass(frozen=True)
class SheetLayout:
    """Where one clip's sheet puts things. Every `stride`-th frame is a tile; `columns` tiles make a row.

    From the top: the caption, then row by row the tiles and their strip of waveform.
    """

    stride: int
    columns: int
    rows: int
    tile_width: int
    fps: float

    @classmethod
    def of(cls, clip: SheetClip, tiles: int, per_row: int) -> "SheetLayout":
        """The layout that shows at most `tiles` frames, at most `per_row` of them in a row."""
        frames, height, width, _ = clip.video.shape
        stride = math.ceil(frames / tiles)
        shown = math.ceil(frames / stride)
        rows = math.ceil(shown / per_row)
        return cls(stride, math.ceil(shown / rows), rows, max(1, round(TILE_HEIGHT * width / height)), clip.fps)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.columns * self.tile_width, CAPTION_HEIGHT + self.rows * (TILE_HEIGHT + STRIP_HEIGHT)

    def tile(self, index: int) -> tuple[int, int]:
        """(left, top) of tile `index`, which shows frame `index * stride`."""
        row, column = divmod(index, self.columns)
        return column * self.tile_width, CAPTION_HEIGHT + row * (TILE_HEIGHT + STRIP_HEIGHT)

    def time(self, row: int, x: np.ndarray | float) -> np.ndarray | float:
        """Seconds that lie at `x` pixels from the left in row `row`, of frames and waveform alike."""
        return (row * self.columns + np.asarray(x) / self.tile_width) * self.stride / self.fps

    def position(self, time: float) -> tuple[int, int]:
        """(x, row) at which `time` in seconds lies."""
        tile = time * self.fps / self.stride
        row = min(int(tile // self.columns), self.rows - 1)
        return int((tile - row * self.columns) * self.tile_width), row


def contact_sheet(clips: Sequence[SheetClip]) -> Image.Image:
    """Draw one clip with (up to 48 of) its frames, or several as a grid of one row of frames each.

    Raises MovaError for an empty sequence and for shapes or types that SheetClip does not allow.
    """
    if not clips:
        raise MovaError("a contact sheet needs at least one clip")
    tiles = SINGLE_TILES if len(clips) == 1 else SEVERAL_TILES
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
    """`contact_sheet(clips)` as the content of a PNG file. MovaError as there."""
    buffer = io.BytesIO()
    contact_sheet(clips).save(buffer, "png")
    return buffer.getvalue()


def _checked(clip: SheetClip) -> SheetClip:
    video, audio = clip.video, clip.audio
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise MovaError(f"a contact sheet needs video uint8 [f, h, w, 3], got {video.dtype} {list(video.shape)}")
    if audio.ndim != 1:
        raise MovaError(f"a contact sheet needs mono audio [n], got {list(audio.shape)}")
    return clip


def _draw(clip: SheetClip, layout: SheetLayout) -> Image.Image:
    """One clip's cell."""
    image = Image.new("RGB", layout.size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    # One pixel less than its share: a line between neighbours.
    size = (max(1, layout.tile_width - 1), TILE_HEIGHT)
    for index, frame in enumerate(clip.video[:: layout.stride]):
        image.paste(Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BOX), layout.tile(index))
    peak = max(LEAST_PEAK, float(np.abs(clip.audio).max(initial=0.0)))
    for row in range(layout.rows):
        top = layout.tile(row * layout.columns)[1] + TILE_HEIGHT
        image.paste(Image.fromarray(_waveform(clip, layout, row, peak)), (0, top))
        draw.text((2, top), f"{layout.time(row, 0):.2f} s", fill=TEXT, font=font_for(""))
    font = font_for(clip.caption)
    draw.text((2, 2), _fitting(clip.caption, draw, font, layout.size[0] - 4), fill=TEXT, font=font)
    return image


def _waveform(clip: SheetClip, layout: SheetLayout, row: int, peak: float) -> np.ndarray:
    """The strip under row `row`, uint8 [STRIP_HEIGHT, width, 3]: from lowest to highest sample of each pixel's time."""
    width = layout.size[0]
    edges = np.round(layout.time(row, np.arange(width + 1)) * clip.sample_rate).astype(int)
    # A pixel holds at least one sample however low the rate; a row may outlast the sound.
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
    """The text on one line, cut with an ellipsis where it is wider than `width` pixels."""
    # No character is narrower than a pixel: what lies beyond need not be measured.
    text = " ".join(text.split())
    if len(text) <= width and draw.textlength(text, font=font) <= width:
        return text
    longest = bisect_right(range(min(len(text), width) + 1), width, key=lambda n: draw.textlength(text[:n] + "…", font))
    return text[: max(0, longest - 1)] + "…"
