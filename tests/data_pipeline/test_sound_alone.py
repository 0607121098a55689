"""Sound without pictures: files of any kind serve where none are needed, and are refused by name where they are."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from data_pipeline.conftest import CLIP
from data_pipeline.media import click_time, clicks, every, write_media
from data_pipeline.test_sound import write

from mova_engine.codecs import build_audio_codec, build_text_encoder
from mova_engine.data.dataset import open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import read_clip
from mova_engine.errors import MovaError

HEARD = (0.1, 0.24)
SOUND = clicks(HEARD, 1.2)


def with_cover(path):
    """Put an ID3 tag with a picture, as shops and rippers do, in front of an mp3."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixels = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0), zlib.compress(b"\0" + bytes(6) + b"\0" + bytes(6))
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    frame = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(frame), 0) + frame
    size = bytes(len(frame) >> 7 * k & 127 for k in (3, 2, 1, 0))
    path.write_bytes(b"ID3\x03\0\0" + size + frame + path.read_bytes())
    return path


FILES = {
    "a.wav": lambda path: write(path, SOUND),
    "a.flac": lambda path: write(path, SOUND, codec="flac"),
    "a.mp3": lambda path: with_cover(write(path, SOUND, codec="libmp3lame")),
    "a.m4a": lambda path: write(path, SOUND, codec="aac"),
    "a.opus": lambda path: write(path, SOUND, codec="libopus"),
    "a.mka": lambda path: write(path, SOUND, codec="ac3"),
    "film.mp4": lambda path: write_media(path, every(24, 24), SOUND),
    # Too short a film, but not too short a sound.
    "short.mp4": lambda path: write_media(path, every(24, 1), SOUND),
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for name, make in FILES.items():
        make(folder / name)
    rows = [{"video_path": name, "caption": f"a sound in {name}"} for name in FILES]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_the_clock_starts_at_the_first_sample(sounds, name):
    clip = read_clip(sounds / name, CLIP, pictures=False)
    assert clip.video is None and clip.heard and clip.audio.shape == (CLIP.audio_samples,)
    assert abs(click_time(clip.audio, HEARD[0]) - HEARD[0]) < 1e-3
    later = read_clip(sounds / name, CLIP, pictures=False, start=0.15)
    assert abs(click_time(later.audio, HEARD[1] - 0.15) - (HEARD[1] - 0.15)) < 1e-3


def test_sound_whose_first_page_is_lost_is_refused(sounds, tmp_path):
    """Ogg numbers its pages: without them the clip would begin with the second."""
    data, path = (sounds / "a.opus").read_bytes(), tmp_path / "lost.opus"
    places = [k for k in range(len(data)) if data.startswith(b"OggS\0", k)]
    path.write_bytes(data[: places[2]] + data[places[3] :])
    with pytest.raises(MovaError, match=r"lost.opus: damaged audio: its first page is missing"):
        read_clip(path, CLIP, pictures=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.wav", r"a.wav: has no video \(sound alone serves"), ("a.mp3", "a.mp3: has no video, only a cover picture")],
)
def test_where_pictures_are_needed_sound_alone_is_refused(sounds, name, reason):
    with pytest.raises(MovaError, match=reason + r".*--task audio"):
        read_clip(sounds / name, CLIP, silent="zeros")


def test_what_has_no_sound_is_refused(sounds, tmp_path):
    silent = write_media(tmp_path / "silent.mp4", every(24, 24), None)
    with pytest.raises(MovaError, match="silent.mp4: has no sound track"):
        read_clip(silent, CLIP, pictures=False, silent="zeros")
    with pytest.raises(MovaError, match="a.wav: too short: its sound ends before 9 s"):
        read_clip(sounds / "a.wav", CLIP, pictures=False, silent="zeros", start=9)
    quiet = write(tmp_path / "quiet.wav", 0 * SOUND)
    with pytest.raises(
        MovaError, match=r"quiet.wav: its sound track is silent \(--loader.silent-audio zeros accepts it\)"
    ):
        read_clip(quiet, CLIP, pictures=False)


def test_a_cache_of_sound_takes_films_and_sound_files_and_no_video_codec(sounds, tmp_path):
    codecs = None, build_audio_codec("mdct"), build_text_encoder("bytes", tokens=8, dim=16)
    data = open_dataset(sounds, LatentCache(tmp_path / "cache", CLIP, *codecs), bad_clips="stop")
    batch = data.batch(range(len(FILES)))
    assert batch.keys() == {"audio_latents", "heard", "text", "caption", "id"}
    assert batch["heard"].all() and batch["audio_latents"].shape[0] == len(FILES)
    first = codecs[1].encode(torch.from_numpy(read_clip(sounds / "a.wav", CLIP, pictures=False).audio).view(1, 1, -1))
    torch.testing.assert_close(batch["audio_latents"][:1], first, rtol=0, atol=0)
    # The size of pictures is nothing to it.
    other = LatentCache(tmp_path / "cache", type(CLIP)(frames=CLIP.frames, height=64, width=64), *codecs)
    assert other.read(data.entries[0]) is not None


def test_silent_clips_say_so(clips, make_cache, tmp_path):
    silent = write_media(clips / "0.mp4", every(24, 6), None, size=(32, 48))
    assert not read_clip(silent, CLIP, silent="mask").heard
    with pytest.raises(
        MovaError, match=r"0.mp4: has no sound track \(--loader.silent-audio zeros or mask accepts it\)"
    ):
        read_clip(silent, CLIP)
    data = open_dataset(clips, make_cache(silent="mask"), bad_clips="stop")
    np.testing.assert_array_equal(data.batch([0, 1, 2])["heard"], [[0], [1], [1]])
    assert data.stored_batch([0, 1])["heard"].tolist() == [[0], [1]]
