"""What we write comes back in step, in colour, whole or not at all."""

import errno
import io
import os

import av
import numpy as np
import pytest
from data_pipeline.media import barcode, click_time, clicks, read_barcode

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.mp4_boxes import header_first
from mova_engine.data.media.write import (
    PictureEncoder,
    add_pictures,
    add_sound,
    encode_frames,
    encode_mp4,
    encode_sound,
    mux,
    write_mp4,
)
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

CLIP = ClipConfig(frames=33, height=48, width=48)
NUMBERS = np.stack([barcode(k, 48, 48) for k in range(33)])


def lag_in_samples(heard: np.ndarray, written: np.ndarray) -> int:
    """Shift at which `heard` agrees best with `written`, by cross-correlation."""
    size = 2 * len(written)
    product = np.fft.rfft(heard[: len(written)], size) * np.conj(np.fft.rfft(written, size))
    shift = int(np.fft.irfft(product).argmax())
    return shift if shift < len(written) else shift - size


def test_sound_comes_back_at_its_sample(tmp_path):
    noise = np.convolve(np.random.default_rng(0).standard_normal(66000) * 0.1, np.ones(8) / 8, "same")
    write_mp4(tmp_path / "clip.mp4", NUMBERS, noise)
    heard = read_clip(tmp_path / "clip.mp4", CLIP).audio
    assert lag_in_samples(heard, noise) == 0
    error = np.sqrt(np.mean((heard[:66000] - noise) ** 2) / np.mean(noise**2))
    assert error < 0.1  # 20 dB


def test_a_clip_in_parts_is_the_whole_to_the_byte():
    """Also where one container takes packets as they come, as no sound is waited for."""
    sound, buffer = clicks([0.5], 1.375)[0].astype(np.float32), io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        pictures, heard = add_pictures(container, NUMBERS, 24.0), add_sound(container, 48000)
        encoded = (packet for part in (NUMBERS, None) for packet in _encoded(pictures, part))
        mux(container, encoded, encode_sound(heard, sound, 48000))
    whole = encode_mp4("x.mp4", NUMBERS, sound)
    # With its header first, so that a player can begin before all of it is there.
    assert whole == header_first(buffer.getvalue())
    for sizes in ([1, 4, 4, 24], [32, 1]):
        encoder = PictureEncoder("x.mp4", 24.0)
        for part in np.split(NUMBERS, np.cumsum(sizes)[:-1]):
            encoder.add(part)
        assert encoder.with_sound(sound, 48000) == whole
        encoder.close()
    with pytest.raises(MovaError, match=r"x.mp4: a clip needs at least one picture"):
        PictureEncoder("x.mp4", 24.0).with_sound(sound, 48000)


def _encoded(stream, pictures):
    return stream.encode(None) if pictures is None else encode_frames(stream, pictures, 24.0)


@pytest.mark.parametrize("sample", [0, 1, 12345, 65000])
def test_a_click_comes_back_at_its_sample(tmp_path, sample):
    sound = np.zeros(66000, np.float32)
    sound[sample] = 0.9
    write_mp4(tmp_path / "clip.mp4", NUMBERS, sound)
    heard = read_clip(tmp_path / "clip.mp4", CLIP).audio
    assert abs(int(np.abs(heard).argmax()) - sample) <= 2


def test_pictures_come_back_in_order(tmp_path):
    write_mp4(tmp_path / "clip.mp4", NUMBERS, clicks([0.5], 1.375)[0])
    assert [read_barcode(picture) for picture in read_clip(tmp_path / "clip.mp4", CLIP).video] == list(range(33))


@pytest.mark.parametrize("size", [48, 736])
def test_colours_come_back(tmp_path, size):
    """Small pictures and large ones: the matrix is named in the file, not left to the player's rule for the size."""
    colours = np.random.default_rng(0).integers(0, 256, (3, 3, 3)).astype(np.uint8)
    patches = colours.repeat(size // 3, axis=0).repeat(size // 3, axis=1)
    patches = np.pad(patches, ((0, size - len(patches)), (0, size - len(patches)), (0, 0)), mode="edge")
    video = np.broadcast_to(patches, (5, size, size, 3))
    write_mp4(tmp_path / "clip.mp4", video, clicks([0.1], 0.3)[0])
    clip = read_clip(tmp_path / "clip.mp4", ClipConfig(frames=5, height=size, width=size))
    centres = size // 3 * np.arange(3) + size // 6
    found = clip.video[2][centres][:, centres].astype(int)
    assert np.abs(found - colours).max() <= 4
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)  # BT.709, limited


def test_what_players_need(tmp_path):
    write_mp4(tmp_path / "clip.mp4", NUMBERS, clicks([0.5], 1.375)[0])
    with av.open(str(tmp_path / "clip.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, video.average_rate) == ("h264", "yuv420p", 24)
        assert (audio.codec_context.name, audio.codec_context.sample_rate, audio.channels) == ("aac", 48000, 1)
        assert video.start_time == 0 and audio.start_time == 0
        assert float(video.duration * video.time_base) == pytest.approx(1.375)
        assert float(audio.duration * audio.time_base) == pytest.approx(1.375)


def test_other_frame_rates_and_loud_sound(tmp_path):
    write_mp4(tmp_path / "clip.mp4", NUMBERS, 3 * clicks([0.5], 1.5)[0], fps=24000 / 1001)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(24000 / 1001, rel=1e-6)
    heard = read_clip(tmp_path / "clip.mp4", CLIP).audio
    assert abs(click_time(heard, 0.5) - 0.5) < 2 / 48000 and heard.max() < 1.2


@pytest.mark.parametrize(
    ("video", "audio", "message"),
    [
        (np.zeros((3, 47, 48, 3), np.uint8), np.zeros(100), "even height and width, got 47x48"),
        (np.zeros((3, 48, 48, 3), np.float32), np.zeros(100), "must be uint8"),
        (np.zeros((0, 48, 48, 3), np.uint8), np.zeros(100), "must be uint8"),
        (np.zeros((3, 48, 48, 3), np.uint8), np.zeros((1, 100)), "must be mono"),
        (np.zeros((3, 48, 48, 3), np.uint8), np.full(100, np.nan), "not finite"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, video, audio, message):
    with pytest.raises(MovaError, match=message):
        write_mp4(tmp_path / "clip.mp4", video, audio)
    assert not list(tmp_path.iterdir())


class FullDisk:
    """A file on a disk that is full after the first 10 bytes."""

    def __init__(self, *args, **kwargs):
        self.file = open(*args, **kwargs)  # noqa: SIM115 (closed below)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.file.close()

    def write(self, data):
        self.file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(before := b"an old file")
    monkeypatch.setattr("mova_engine.files.atomic.open", FullDisk, raising=False)
    with pytest.raises(MovaError, match="cannot write .*clip.mp4: No space left on device"):
        write_atomic(path, b"a new file")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_atomic_files(tmp_path):
    write_atomic(tmp_path / "deep" / "er" / "file", b"one")
    write_atomic(tmp_path / "deep" / "er" / "file", b"two", sync=False)
    assert (tmp_path / "deep" / "er" / "file").read_bytes() == b"two"
    assert len(list((tmp_path / "deep" / "er").iterdir())) == 1
    with pytest.raises(MovaError, match="cannot write .*: (Not a directory|File exists)"):
        write_atomic(tmp_path / "deep" / "er" / "file" / "below", b"three")


def test_the_same_clip_gives_the_same_file_each_time(repo_root):
    """Pictures of a trained nano model, of which x264 with AVX-512 made another file one time in four."""
    video = np.load(repo_root / "tests/data/nano_pictures.npz")["video"]
    files = {encode_mp4("x.mp4", video, np.zeros(66000, np.float32)) for _ in range(16)}
    assert len(files) == 1
