"""Contact sheets: frames in order, and the waveform right below the frames during which it sounds."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from mova_engine.data.media import contact_sheet as sheets
from mova_engine.data.media import fonts
from mova_engine.data.media.contact_sheet import SheetClip, SheetLayout, contact_sheet, contact_sheet_png
from mova_engine.data.media.fonts import font_for
from mova_engine.errors import MovaError

RATE = 48000


def clip(
    frames: int = 33, size: int = 48, fps: float = 24.0, click: float | None = 0.5, caption: str = "a ball"
) -> SheetClip:
    """Frame k is a grey of level k; a click of 5 ms sounds at `click` seconds."""
    video = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, size, size, 3))
    audio = np.zeros(round(frames / fps * RATE), np.float32)
    if click is not None:
        audio[round(click * RATE) : round((click + 0.005) * RATE)] = 0.8 * (-1.0) ** np.arange(240)
    return SheetClip(video, audio, caption, fps, RATE)


def pixels(*clips: SheetClip) -> np.ndarray:
    return np.asarray(contact_sheet(clips))


def waveform(sheet: np.ndarray, layout: SheetLayout, row: int) -> np.ndarray:
    """Height in pixels of the waveform at every column of a row's strip, text left out."""
    top = layout.tile(row * layout.columns)[1] + sheets.TILE_HEIGHT
    strip = sheet[top : top + sheets.STRIP_HEIGHT]
    return (strip == sheets.WAVE).all(-1).sum(0)


def test_every_frame_of_a_short_clip_is_there_in_order():
    one = clip()
    sheet, layout = pixels(one), SheetLayout.of(one, sheets.SINGLE_TILES, sheets.TILES_PER_ROW)
    assert (layout.stride, layout.columns, layout.rows) == (1, 11, 3)
    assert sheet.shape[:2] == layout.size[::-1]
    for index in range(33):
        left, top = layout.tile(index)
        assert (sheet[top : top + sheets.TILE_HEIGHT, left : left + layout.tile_width - 1] == index).all()


def test_long_clips_are_thinned_evenly_and_keep_their_shape():
    layout = SheetLayout.of(SheetClip(np.zeros((193, 352, 640, 3), np.uint8), np.zeros(1)), 48, 12)
    assert (layout.stride, layout.columns, layout.rows) == (5, 10, 4)
    assert layout.tile_width == round(96 * 640 / 352)
    one = clip(frames=60)
    left, top = SheetLayout.of(one, 48, 12).tile(29)
    assert pixels(one)[top + 40, left + 40].tolist() == [58] * 3


@pytest.mark.parametrize("time", [0.0, 0.21, 0.46, 0.9, 1.36])
def test_sound_lies_below_the_frame_on_display(time):
    one = clip(click=time)
    sheet, layout = pixels(one), SheetLayout.of(one, sheets.SINGLE_TILES, sheets.TILES_PER_ROW)
    x, row = layout.position(time)
    frame = int(time * 24)
    left, top = layout.tile(frame)
    assert left <= x < left + layout.tile_width
    assert sheet[top + 10, x - 1 if x % layout.tile_width == layout.tile_width - 1 else x].tolist() == [frame] * 3
    for each in range(layout.rows):
        tall = np.flatnonzero(waveform(sheet, layout, each) > 0.8 * sheets.STRIP_HEIGHT)
        if each == row:
            # 5 ms are 11.5 pixels of a frame's 96.
            assert x - 1 <= tall.min() <= x + 1
            assert tall.max() <= x + 13
        else:
            assert not len(tall)


def test_the_clock_is_the_clips_own_frame_rate():
    one = clip(frames=20, fps=10.0, click=1.55)
    layout = SheetLayout.of(one, sheets.SINGLE_TILES, sheets.TILES_PER_ROW)
    tall = np.flatnonzero(waveform(pixels(one), layout, 1) > 20)
    assert layout.position(1.55) == (int(5.5 * 96), 1)
    assert abs(tall.min() - 5.5 * 96) <= 1
    assert layout.time(1, 5.5 * 96) == pytest.approx(1.55)


def test_silence_is_a_line_and_quiet_sound_is_drawn_quiet():
    layout = SheetLayout.of(clip(), sheets.SINGLE_TILES, sheets.TILES_PER_ROW)
    silent = clip(click=None)
    assert set(waveform(pixels(silent), layout, 2)) <= {1, 2}
    quiet = SheetClip(silent.video, silent.audio + np.float32(0.005), "", 24.0, RATE)
    assert waveform(pixels(quiet), layout, 2).max() <= 4


def test_several_clips_become_a_grid_with_their_captions():
    rows = [clip(caption=f"clip {i}", click=0.1 * i) for i in range(10)]
    sheet = pixels(*rows)
    layout = SheetLayout.of(rows[0], sheets.SEVERAL_TILES, sheets.TILES_PER_ROW)
    width, height = layout.size
    assert sheet.shape[:2] == (5 * height + 4 * sheets.GAP, 2 * width + sheets.GAP)
    for i in range(10):
        x, y = (i // 5) * (width + sheets.GAP), (i % 5) * (height + sheets.GAP)
        cell = sheet[y : y + height, x : x + width]
        assert (cell[: sheets.CAPTION_HEIGHT] > 100).any()
        assert waveform(cell, layout, 0).argmax() == pytest.approx(layout.position(0.1 * i)[0], abs=13)
        assert cell[40, layout.tile(10)[0] + 5, 0] == 30


def test_captions_are_cut_to_the_width_and_shown():
    blank, short, long = (pixels(clip(caption=c))[: sheets.CAPTION_HEIGHT] for c in ("", "мяч", "word " * 300))
    assert not blank.any()
    assert short.any()
    assert long.any()
    assert not long[:, -3:].any()


def test_a_long_caption_is_cut_where_it_no_longer_fits_with_few_measurements(monkeypatch):
    draw, font = ImageDraw.Draw(Image.new("RGB", (8, 8))), font_for("")
    measured = []
    original = ImageDraw.ImageDraw.textlength
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "textlength", lambda self, text, font: measured.append(text) or original(self, text, font)
    )
    for text in ("x", "word " * 5000, "i" * 40, "W" * 1000):
        measured.clear()
        shown = sheets._fitting(text, draw, font, 200)
        assert original(draw, shown, font) <= 200 and len(measured) <= 12
        if shown.endswith("…"):
            longer = " ".join(text.split())[: len(shown)] + "…"
            assert original(draw, longer, font) > 200
    assert sheets._fitting("word", draw, font, 1) == "…"


def test_a_caption_is_written_in_a_font_that_has_its_characters(tmp_path, monkeypatch, caplog):
    """MOVA's users write Chinese, and matplotlib's own font has none of it."""
    builder = FontBuilder(1000)
    glyph = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 800), (800, 800)):
        (glyph.lineTo if (x, y) != (0, 0) else glyph.moveTo)((x, y))
    glyph.closePath()
    builder.setupGlyphOrder([".notdef", "ball"])
    builder.setupCharacterMap({ord("球"): "ball", ord("x"): "ball"})
    builder.setupGlyf({".notdef": glyph.glyph(), "ball": glyph.glyph()})
    builder.setupHorizontalMetrics({".notdef": (900, 0), "ball": (900, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "test.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"nonsense")
    found = (tmp_path / "broken.ttf", tmp_path / "test.ttf")
    monkeypatch.setattr(fonts, "system_fonts", lambda: found)
    monkeypatch.setattr(fonts, "_warned", [])
    fonts._choose.cache_clear()
    assert font_for("x 球").getname() == ("Test", "Regular") and not caplog.records
    assert font_for("a red ball").getname()[0] == font_for("").getname()[0] == "DejaVu Sans"
    for text in ("漢字", "漢"):
        font_for(text)
    (told,) = caplog.records
    assert "字" in told.getMessage() and "fonts-noto-cjk" in told.getMessage()
    fonts._choose.cache_clear()


def test_bad_shapes_are_refused(tmp_path):
    one = clip()
    with pytest.raises(MovaError, match="at least one clip"):
        contact_sheet([])
    with pytest.raises(MovaError, match="uint8"):
        contact_sheet([SheetClip(one.video.astype(np.float32), one.audio)])
    with pytest.raises(MovaError, match="mono"):
        contact_sheet([SheetClip(one.video, one.audio[None])])
    (tmp_path / "sheet.png").write_bytes(contact_sheet_png([one]))
    assert Image.open(tmp_path / "sheet.png").size == contact_sheet([one]).size
