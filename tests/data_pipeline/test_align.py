"""The lag between mouth and voice: found where there is one, also after everything that the engine does to a clip.

tests/data/talking.mp4 is four seconds of `talking_real_speech.mp4` in small (a drawn face; speech from LibriVox, public
domain).
"""

from pathlib import Path

import numpy as np
import pytest

from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec, video_to_uint8
from mova_engine.commands.eval_lag import main
from mova_engine.config.model import ClipConfig
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import Clip, probe, read_clip
from mova_engine.data.media.write import write_mp4
from mova_engine.data.metadata import Entry
from mova_engine.errors import MovaError
from mova_engine.scores.speech_lag import Lag, loudness, measure_file, measure_lag

TALKING = Path(__file__).parents[1] / "data" / "talking.mp4"
RATES = {"fps": 24, "sample_rate": 48000}


@pytest.fixture(scope="module")
def talking() -> Clip:
    return read_clip(TALKING, ClipConfig(frames=97, height=96, width=160))


def through_everything(path: Path, clip: ClipConfig, folder: Path) -> Path:
    """Loader, latent cache, codecs there and back, mp4 writer: a new file."""
    video, audio = build_video_codec("dct"), build_audio_codec("mdct")
    text = build_text_encoder("bytes", tokens=8, dim=16)
    entry = Entry(path, "a face talks", "talking")
    assert not LatentCache(folder / "cache", clip, video, audio, text).fill([entry])
    latents = LatentCache(folder / "cache", clip, video, audio, text).get(entry)
    pictures = video_to_uint8(video.decode(latents["video_latents"][None])[0]).numpy()
    sound = audio.decode(latents["audio_latents"][None])[0, 0].numpy()
    write_mp4(folder / path.name, pictures, sound)
    return folder / path.name


@pytest.mark.parametrize("frames", [-9, -3, 0, 1, 6, 12])
def test_a_lag_is_found(talking, frames):
    """Pictures moved by whole frames against the sound, as if recorded late or early."""
    moved = Clip(np.roll(talking.video, frames, axis=0), talking.audio)
    lag = measure_lag(moved.video, moved.audio, **RATES)
    assert lag.frames == frames and lag.score > 0.8


def test_a_small_mouth_is_found_anywhere(talking):
    """No place is known beforehand: the face is a quarter of the picture, in a corner, beside something that moves."""
    small = talking.video[:, ::2, ::2]
    rng = np.random.default_rng(0)
    drifting = np.cumsum(rng.standard_normal((97, 1, 1, 1)), axis=0) * 4 + 120
    scene = np.broadcast_to(drifting, (97, 96, 160, 3)).clip(0, 255).astype(np.uint8).copy()
    scene[:, 48:, 80:] = small
    assert measure_lag(scene, talking.audio, **RATES).frames == 0


def test_unrelated_sound_and_picture_have_no_lag(talking):
    for video, audio, message in (
        (talking.video[::-1], talking.audio, "no part of the picture follows the sound"),
        (talking.video[:1].repeat(97, axis=0), talking.audio, "the picture does not move"),
        (talking.video, 0 * talking.audio, "the sound does not change"),
        (talking.video[:20], talking.audio, "20 frames are too few"),
    ):
        with pytest.raises(MovaError, match=message):
            measure_lag(video, audio, **RATES)


def test_loudness_is_that_of_the_sound_while_a_picture_shows():
    sound = np.repeat([0.0, 1.0, 0.5], 2000)
    np.testing.assert_allclose(loudness(sound, 4, **RATES), [0, 1, 0.5, 0])


@pytest.mark.parametrize("frames", [0, 6])
def test_the_lag_survives_cache_codecs_and_writer(talking, tmp_path, frames):
    source = tmp_path / "source.mp4"
    video = np.concatenate([talking.video[:1]] * frames + [talking.video])[:97]
    write_mp4(source, video, talking.audio)
    made = through_everything(source, ClipConfig(frames=97, height=96, width=160), tmp_path / "made")
    assert measure_file(source).frames == frames == measure_file(made).frames
    assert probe(made).duration == pytest.approx(97 / 24)


# At the size of real clips; the same checks on four seconds in small are above.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames"), [("talking_real_speech", 0), ("talking_real_speech_audio_shifted_6_frames", 6)]
)
def test_shared_clips(shared_dir, tmp_path, name, frames):
    """The pictures of the second file come 6 frames after their sound."""
    path = shared_dir / "media" / f"{name}.mp4"
    assert measure_file(path) == Lag(frames, pytest.approx(0.92, abs=0.02))
    made = through_everything(path, ClipConfig(frames=193, height=96, width=160), tmp_path)
    lag = measure_file(made)
    assert lag.frames == frames and lag.score > 0.8


def test_the_command(tmp_path, capsys):
    assert main([str(TALKING)]) == 0
    assert f"{TALKING}: lag 0 frames (0 ms), correlation 0." in capsys.readouterr().out
    assert main([str(tmp_path / "none.mp4"), str(TALKING)]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {tmp_path / 'none.mp4'}: no such file\n" and "lag 0 frames" in printed.out
