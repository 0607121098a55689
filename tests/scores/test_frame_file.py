"""Decoded frames in shared memory are the decoder's own, whatever their format, and reach another process whole."""

import os
import struct

import av
import numpy as np
import pytest

from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.scores import decoded_clip
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.frame_file import FrameFile


def noise(height=22, width=38):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


FORMATS = ("yuv420p", "yuvj422p", "yuv444p10le", "nv12", "rgb24", "bgra", "gbrp", "gray", "pal8")


@pytest.mark.parametrize("form", FORMATS)
def test_a_frame_comes_back_as_it_was(form):
    if form == "pal8":
        indices, palette = noise()[..., 0], np.random.default_rng(1).integers(0, 255, (256, 4), np.uint8)
        frame = av.VideoFrame.from_ndarray((indices, palette), format="pal8")
    else:
        frame = av.VideoFrame.from_ndarray(noise(), format="rgb24").reformat(format=form)
    frame.colorspace, frame.color_range, frame.pts = 1, 2, 7
    file = FrameFile()
    file.append(av.VideoFrame.from_ndarray(noise(), format="rgb24"))
    stored = file.append(frame)
    made = file.frame(stored)
    assert (made.format.name, made.width, made.height, stored.pts) == (form, 38, 22, 7)
    assert (made.colorspace, made.color_range) == (1, 2)
    assert np.array_equal(made.to_ndarray(format="rgb24"), frame.to_ndarray(format="rgb24"))


def test_a_picture_that_is_stored_upside_down_is_shown_upright(tmp_path):
    """An AVI of raw RGB whose header has a positive height: the last line comes first."""
    picture = np.zeros((18, 34, 3), np.uint8)
    picture[:4] = 200
    with av.open(str(tmp_path / "raw.avi"), "w") as container:
        stream = container.add_stream("rawvideo", rate=24, width=34, height=18)
        stream.pix_fmt = "bgr24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr24")))
        container.mux(stream.encode(None))
    data = bytearray((tmp_path / "raw.avi").read_bytes())
    header = data.index(b"strf") + 16
    struct.pack_into("<i", data, header, 18)
    (tmp_path / "upside.avi").write_bytes(data)
    assert np.array_equal(next(DecodedClip.read(tmp_path / "raw.avi").pictures_of([0])), picture)
    assert np.array_equal(next(read_clip(tmp_path / "upside.avi").pictures_of([0])), picture[::-1])


def test_another_process_decodes_what_this_one_sees(tmp_path):
    sound = 0.1 * np.sin(np.arange(12000) / 9).astype(np.float32)
    pictures = np.stack([np.roll(noise(32, 48), i, 1) for i in range(6)])
    write_mp4(tmp_path / "clip.mp4", pictures, sound, fps=24, sample_rate=48000)
    here, there = DecodedClip.read(tmp_path / "clip.mp4"), read_clip(tmp_path / "clip.mp4")
    assert there.times == here.times and there.size == (32, 48) and there.fps == 24
    assert all(map(np.array_equal, there.pictures_of(range(6)), here.pictures_of(range(6))))
    assert np.array_equal(there.soundtrack.samples, here.soundtrack.samples)


def test_a_file_with_more_pictures_than_fit_is_refused(tmp_path, monkeypatch):
    write_mp4(
        tmp_path / "clip.mp4", np.stack([noise(32, 48)] * 4), np.zeros(8000, np.float32), fps=24, sample_rate=48000
    )
    monkeypatch.setattr(decoded_clip, "MOST_BYTES", 4000)
    with pytest.raises(MovaError, match="scores measure clips: cut it"):
        DecodedClip.read(tmp_path / "clip.mp4")


def test_a_file_that_cannot_be_read_leaves_no_memory_behind_while_its_error_is_kept(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no clip")
    errors, open_files = [], []
    for _ in range(3):
        with pytest.raises(MovaError) as raised:
            read_clip(tmp_path / "x.mp4")
        errors.append(raised.value)
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[0] == open_files[-1]


def test_a_file_is_closed_once():
    """Its number may be another file's when it is given up again."""
    store = FrameFile()
    store.close()
    other = os.open(os.devnull, os.O_RDONLY)
    store.close()
    os.close(other)
