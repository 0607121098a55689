"""What the measure sees and hears in files: true clips, clips through the codecs, damaged and odd ones."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from mova_engine.codecs import build_audio_codec, build_video_codec, video_from_uint8, video_to_uint8
from mova_engine.data.media.write import write_mp4
from mova_engine.data.synthetic.bounce import COLOURS, HELD_OUT, TRAINED, WALL, Bounce, draw, render_audio, render_video
from mova_engine.errors import MovaError
from mova_engine.scores.bounce_events import find_bounces, find_clicks, find_pitch, nearest_colour, observe, track_ball

CLIP = Bounce("yellow", "quick", delay=0.21, column=20.0)  # bounces at 0.51 and 1.11 s
TIMES = np.arange(33) / 24


@pytest.fixture(scope="module")
def clips() -> list[Bounce]:
    pairs = TRAINED + HELD_OUT
    return [draw(np.random.default_rng(i), *pairs[i]) for i in range(len(pairs))]


def seen(video: np.ndarray) -> tuple[tuple[float, ...], str | None]:
    rows, colour = track_ball(video)
    return find_bounces(rows, TIMES[: len(rows)]) if colour else (), colour


def assert_near(found, truth, tolerance: float) -> None:
    """All events of the truth are found, in place; those of the last 0.1 s may be missing."""
    sure = [time for time in truth if time < 1.275]
    assert len(sure) <= len(found) <= len(truth)
    assert np.abs(np.array(found) - truth[: len(found)]).max() < tolerance


def test_a_written_file_is_seen_and_heard_as_it_was_made(tmp_path):
    write_mp4(tmp_path / "clip.mp4", render_video(CLIP), render_audio(CLIP))
    events = observe(tmp_path / "clip.mp4", CLIP.caption)
    assert (events.name, events.caption, events.colour) == ("clip.mp4", CLIP.caption, "yellow")
    assert events.last_frame == pytest.approx(32 / 24)
    assert_near(events.bounces, CLIP.times, 0.002)
    assert_near(events.clicks, CLIP.times, 0.001)
    assert events.pitches == pytest.approx((850, 850), abs=5)


def test_every_pair_is_found_through_the_embedded_codecs(clips):
    video_codec, audio_codec = build_video_codec("dct"), build_audio_codec("mdct")
    for clip in clips:
        latents = video_codec.encode(video_from_uint8(torch.from_numpy(render_video(clip))[None]))
        video = video_to_uint8(video_codec.decode(latents))[0].numpy()
        sound = audio_codec.decode(audio_codec.encode(torch.from_numpy(render_audio(clip))[None, None]))[0, 0].numpy()
        bounces, colour = seen(video)
        clicks = find_clicks(sound)
        assert colour == clip.colour
        assert_near(bounces, clip.times, 0.012)
        assert_near(clicks, clip.times, 0.002)
        assert [find_pitch(sound, click) for click in clicks] == pytest.approx(
            [COLOURS[colour][1]] * len(clicks), abs=20
        )


def test_blur_noise_and_flicker_do_not_hide_the_bounces(clips):
    rng = np.random.default_rng(0)
    for clip in clips[::3]:
        video = render_video(clip).astype(float)
        blurred = (
            np.roll(video, 1, 1) + video + np.roll(video, -1, 1) + np.roll(video, 1, 2) + np.roll(video, -1, 2)
        ) / 5
        flicker = rng.uniform(0.6, 1, (33, 1, 1, 1))
        scene = np.median(video, axis=(0, 2), keepdims=True)
        noisy = scene + flicker * (blurred - scene) + rng.normal(0, 8, video.shape)
        bounces, colour = seen(noisy.clip(0, 255).astype(np.uint8))
        assert colour == clip.colour
        assert_near(bounces, clip.times, 0.03)


@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_a_noise_floor_and_a_swell_before_the_click_do_not_hide_it(clips, noise):
    rng = np.random.default_rng(0)
    for clip in clips[::3]:
        sound = render_audio(clip)
        echo = 0.3 * np.append(sound[480:], np.zeros(480))  # 10 ms ahead
        sound = sound + echo + rng.normal(0, noise, sound.shape)
        assert_near(find_clicks(sound), clip.times, 0.004)


def test_a_still_ball_and_an_empty_scene_have_no_bounces():
    still = render_video(replace(CLIP, delay=5.0))
    assert seen(still) == ((), "yellow")
    rising = render_video(CLIP)[12:20]  # from the floor up
    assert seen(rising)[0] == ()
    empty = np.broadcast_to(np.median(still, axis=2, keepdims=True), still.shape).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 3, empty.shape)
    assert seen((empty + noise).clip(0, 255).astype(np.uint8)) == ((), None)


def test_a_turn_in_mid_air_is_no_bounce():
    rows = np.interp(TIMES, [0, 0.5, 1.0, 1.4], [0.15, 0.45, 0.15, 0.15])
    assert find_bounces(rows, TIMES) == ()
    assert len(find_bounces(rows * 1.6, TIMES)) == 1


def test_a_bounce_at_the_end_counts_only_with_its_rise():
    for last, count in ((0.51, 0), (0.51 + 0.07, 1)):
        frames = round(last * 24) + 1
        assert len(seen(render_video(CLIP)[:frames])[0]) == count, last


def test_clicks_are_told_from_silence_hum_and_one_another():
    t = np.arange(66000) / 48000
    rng = np.random.default_rng(0)
    assert find_clicks(np.zeros(66000)) == find_clicks(np.zeros(0)) == ()
    assert find_clicks(0.3 * np.sin(2 * np.pi * 500 * t)) == ()
    assert find_clicks(rng.normal(0, 0.05, 66000)) == ()
    assert find_clicks(0.01 * render_audio(CLIP)) == ()
    assert_near(find_clicks(0.1 * render_audio(CLIP)), CLIP.times, 0.001)
    first = render_audio(replace(CLIP, delay=-0.3))  # at 0 s
    assert find_clicks(first)[0] == pytest.approx(0, abs=0.003)
    near = render_audio(CLIP) + np.roll(render_audio(CLIP), round(0.15 * 48000))
    assert find_clicks(near) == pytest.approx((0.51, 0.66, 1.11, 1.26), abs=0.002)


def test_pale_and_faint_balls_keep_their_colour():
    for name, (rgb, _) in COLOURS.items():
        full = np.array(rgb, float) - WALL
        assert nearest_colour(full) == nearest_colour(0.1 * full) == nearest_colour(full + full.mean()) == name


def test_colour_is_seen_where_a_codec_smears_it(clips):
    """Brightness stays sharp, colour spreads to nearly twice the ball's width and its middle pales."""
    for clip in clips[::3]:
        video = render_video(clip).astype(float)
        grey = video.mean(-1, keepdims=True)
        smeared = uniform_filter(video - grey, size=(1, 17, 17, 1))
        assert seen((grey + smeared).clip(0, 255).astype(np.uint8))[1] == clip.colour


def mux(path, video, audio, sound_start: float, rate: int = 48000, layout: str = "mono") -> None:
    """An mp4 whose sound begins `sound_start` seconds after its picture; pictures at uneven times are allowed."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=24, options={"crf": "10"})
        pictures.height, pictures.width, pictures.pix_fmt = 48, 48, "yuv420p"
        pictures.codec_context.time_base = Fraction(1, 24000)
        sound = container.add_stream("aac", rate=rate, layout=layout)
        for time, pixels in video:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time * 24000), Fraction(1, 24000)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        samples = av.AudioFrame.from_ndarray(audio, format="fltp", layout=layout)
        samples.sample_rate, samples.time_base, samples.pts = rate, Fraction(1, rate), round(sound_start * rate)
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))


def test_timestamps_rule_not_counts(tmp_path):
    """Late sound in stereo at another rate, and pictures of which some are missing, all at their own times."""
    kept = [k for k in range(33) if k % 3 != 1]
    video = [(k / 24, pixels) for k, pixels in enumerate(render_video(CLIP)) if k in kept]
    audio = render_audio(CLIP)[: 24000 * 2 : 2] * 0.5
    mux(tmp_path / "late.mp4", video, np.stack([audio, audio]).astype(np.float32), 0.25, rate=24000, layout="stereo")
    events = observe(tmp_path / "late.mp4")
    assert_near(events.bounces, CLIP.times, 0.01)
    assert events.clicks == pytest.approx((0.76,), abs=0.003)


def test_a_file_without_sound_is_silent_and_a_damaged_one_is_named(tmp_path):
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        pictures = container.add_stream("libx264", rate=24)
        pictures.height, pictures.width, pictures.pix_fmt = 48, 48, "yuv420p"
        for pixels in render_video(CLIP):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode(None))
    events = observe(tmp_path / "mute.mp4")
    assert events.clicks == events.pitches == () and len(events.bounces) == 2
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "mute.mp4").read_bytes()[:600])
    with pytest.raises(MovaError, match="broken.mp4"):
        observe(tmp_path / "broken.mp4")
    with pytest.raises(MovaError, match="absent.mp4"):
        observe(tmp_path / "absent.mp4")
