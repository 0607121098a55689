"""Sound comes out at its time and at a defined level: drifting clocks, gaps, layouts, formats, opposite phase."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.audio.layout import AudioLayout
from data_pipeline.media import click_time, clicks

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.clock import displaced, find_runs
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.downmix import mono_weights
from mova_engine.data.media.sound import read_sound
from mova_engine.errors import MovaError

RATE = 48000
CLIP = ClipConfig(frames=49, height=48, width=48)  # 2.04 s
# What FFmpeg 8 has names for.
LAYOUTS = [
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0"),
    *("5.0(side)", "4.1", "5.1", "5.1(side)", "6.0", "6.0(front)", "3.1.2", "hexagonal", "6.1", "6.1(back)"),
    *(
        "6.1(front)",
        "7.0",
        "7.0(front)",
        "7.1",
        "7.1(wide)",
        "7.1(wide-side)",
        "5.1.2",
        "5.1.2(back)",
        "octagonal",
        "cube",
    ),
    *("5.1.4", "7.1.2", "7.1.4", "7.2.3", "9.1.4", "9.1.6", "hexadecagonal", "binaural", "downmix", "22.2"),
]
HALF_POWER = 2**-0.5


def write(path, sound, *, rate=RATE, layout=None, codec="pcm_s16le", stamp=lambda seconds: seconds):
    """Sound [c, n] in chunks of 1024 samples, of which the one at t seconds is stamped `stamp(t)`; None: left out."""
    layout = layout or {1: "mono", 2: "stereo"}[len(sound)]
    clock = Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        for position in range(0, sound.shape[1], 1024):
            if (time := stamp(position / rate)) is None:
                continue
            chunk = sound[:, position : position + 1024].T.reshape(1, -1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(chunk, format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, clock, round(time * rate)
            for converted in resampler.resample(frame):
                converted.pts, converted.time_base = round(time * rate), clock
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def read(path, clip=CLIP, start=0):
    with av.open(str(path)) as container:
        return read_sound(container, path, clip, Fraction(start), Fraction(0))


def tone(seconds, hertz=440.0, size=0.4):
    return size * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def clicks_in(sound, hertz=440.0, size=0.4):
    """Where a tone has a kink or a jump: its second difference exceeds that of the tone by half."""
    limit = 1.5 * size * (2 * np.pi * 1.02 * hertz / RATE) ** 2
    inside = sound[RATE // 200 :].astype(np.float64)  # sound may begin some samples late, and then fades in
    return np.flatnonzero(np.abs(np.diff(inside, 2)) > limit)


def test_weights_are_those_of_bs775():
    """Table 2 of BS.775 for 3/2 and 3/1 to 2/0, then half of the sum of both; every name that FFmpeg has is known."""
    to_left = {"FL": 1, "FR": 0, "FC": HALF_POWER, "BL": HALF_POWER, "BR": 0, "SL": HALF_POWER, "SR": 0, "LFE": 0}
    to_right = {"FL": 0, "FR": 1, "FC": HALF_POWER, "BL": 0, "BR": HALF_POWER, "SL": 0, "SR": HALF_POWER, "LFE": 0}
    to_left["BC"] = to_right["BC"] = 0.5
    checked = 0
    for name in LAYOUTS:
        channels = [channel.name for channel in AudioLayout(name).channels]
        weights = dict(zip(channels, mono_weights(channels), strict=True))
        assert all((weights[c] == 0) == c.startswith("LFE") and weights[c] <= 1 for c in channels), name
        for left in (c for c in channels if c.endswith("L")):
            assert weights[left] == weights[left[:-1] + "R"] in (0.5, pytest.approx(HALF_POWER / 2)), name
        if set(channels) <= set(to_left) and len(channels) > 1:
            expected = [(to_left[c] + to_right[c]) / 2 for c in channels]
            np.testing.assert_allclose([weights[c] for c in channels], expected, rtol=1e-6)
            checked += 1
    assert checked >= 15
    assert mono_weights(["FC"]) == mono_weights(["LFE"]) == 1
    assert list(mono_weights(["AMBI0", "AMBI1", "AMBI2", "AMBI3", "FL", "FR"])) == [1, 0, 0, 0, 0.5, 0.5]
    assert list(mono_weights(["NONE", "NONE"])) == [0.5, 0.5]
    with pytest.raises(MovaError, match="3 channels of unknown places"):
        mono_weights(["FL", "FR", "USR3"])


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "5.0", "5.1(side)", "6.1", "7.1"])
def test_each_channel_of_a_file_comes_out_at_its_level(tmp_path, layout):
    """A tone of its own pitch in every channel; a centre alone is 3 dB below itself, a side alone 6 dB.

    FLAC is decoded to a plane for each channel.
    """
    channels = [channel.name for channel in AudioLayout(layout).channels]
    sound = np.stack([tone(2.2, 250 * (k + 1), 0.1) for k in range(len(channels))])
    kind = {"7.1": "flac", "5.0": "flac"}.get(layout, "wav")
    path = write(tmp_path / f"clip.{kind}", sound, layout=layout, codec="flac" if kind == "flac" else "pcm_s16le")
    audio = read(path).mono[:RATE]
    levels = np.abs(np.fft.rfft(audio))[[250 * (k + 1) for k in range(len(channels))]] / (RATE / 2) / 0.1
    decibels = {"FL": -6.02, "FR": -6.02, "FC": -3.01, "BC": -6.02, "LFE": -np.inf}
    expected = [10 ** (decibels.get(c, -9.03) / 20) if len(channels) > 1 else 1.0 for c in channels]
    np.testing.assert_allclose(levels, expected, atol=2e-3)


FRONT, CENTRE, SURROUND, NONE = 0.5, HALF_POWER, HALF_POWER / 2, 0.0
# Apple's tags of channel orders, and what each channel of the file then weighs.
ORDERS = {
    "film: L C R Ls Rs LFE": ((123 << 16) | 6, [FRONT, CENTRE, FRONT, SURROUND, SURROUND, NONE]),
    "L R Ls Rs C LFE": ((122 << 16) | 6, [FRONT, FRONT, SURROUND, SURROUND, CENTRE, NONE]),
    "C L R Ls Rs LFE": ((124 << 16) | 6, [CENTRE, FRONT, FRONT, SURROUND, SURROUND, NONE]),
    "L R C LFE Ls Rs Rls Rrs": ((128 << 16) | 8, [FRONT, FRONT, CENTRE, NONE, *[SURROUND] * 4]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_channels_are_told_apart_by_the_order_of_the_file(tmp_path, name):
    """QuickTime's orders, as of ProRes masters; read in a process of its own, which another order used to end."""
    tag, expected = ORDERS[name]
    sound = np.stack([tone(2.2, 250 * (k + 1), 0.1) for k in range(len(expected))])
    path = write(tmp_path / "master.mov", sound, layout="5.1" if len(sound) == 6 else "7.1")
    data = bytearray(path.read_bytes())
    place = data.index(b"chan") + 8  # behind the kind, version and flags
    data[place : place + 4] = tag.to_bytes(4, "big")
    path.write_bytes(data)
    audio = read_clip(path, CLIP, pictures=False).audio[:RATE]
    levels = np.abs(np.fft.rfft(audio))[[250 * (k + 1) for k in range(len(sound))]] / (RATE / 2) / 0.1
    np.testing.assert_allclose(levels, expected, atol=2e-3)


def test_a_downmix_beyond_full_scale_is_scaled_as_a_whole(tmp_path):
    """Loud in all channels: 2.41 times as large, brought back to 1 without a clipped sample."""
    loud = tone(2.2, size=0.8) * np.linspace(0.2, 1, round(2.2 * RATE))
    audio = read(write(tmp_path / "clip.wav", np.tile(loud, (6, 1)), layout="5.1")).mono
    assert np.abs(audio).max() == pytest.approx(1)
    np.testing.assert_allclose(audio, loud[: len(audio)] / np.abs(loud[: len(audio)]).max(), atol=1e-3)
    beyond = read(write(tmp_path / "float.wav", np.tile(3 * loud, (2, 1)), codec="pcm_f32le")).mono
    np.testing.assert_allclose(beyond, audio, atol=1e-3)


def test_opposite_phase_is_not_silence(tmp_path, caplog):
    """One of the channels is taken inverted, and this is said; nothing else changes sign."""
    voice = clicks([0.5, 1.5], 2.2)[0] + tone(2.2, 200, 0.1)
    noise = 0.004 * np.random.default_rng(0).standard_normal((2, len(voice)))
    sound = read(write(tmp_path / "clip.wav", np.stack([voice, -voice]) + noise))
    np.testing.assert_allclose(sound.mono, (voice + (noise[0] - noise[1]) / 2)[: len(sound.mono)], atol=1e-3)
    assert not sound.silent and "clip.wav: left and right are in opposite phase" in caplog.text
    caplog.clear()
    wide = np.stack([voice + 50 * noise[0], 50 * noise[1] - 0.3 * voice])
    np.testing.assert_allclose(read(write(tmp_path / "wide.wav", wide)).mono[:999], wide.mean(0)[:999], atol=1e-3)
    assert not caplog.text
    cancels = np.stack([0.5 * voice, 0.5 * voice, -HALF_POWER * voice])
    with pytest.raises(MovaError, match="cancels.wav: its channels cancel each other"):
        read(write(tmp_path / "cancels.wav", cancels, layout="3.0", codec="pcm_f32le"))


def test_silence_is_judged_by_channel(tmp_path):
    nothing = np.zeros(round(2.2 * RATE))
    assert read(write(tmp_path / "a.wav", np.stack([nothing, nothing]))).silent
    assert read(write(tmp_path / "b.wav", np.stack([nothing] * 3 + [tone(2.2)] + [nothing] * 2), layout="5.1")).silent
    assert not read(write(tmp_path / "c.wav", np.stack([nothing, tone(2.2, size=1.5e-4)]), codec="pcm_f32le")).silent


@pytest.mark.parametrize("rate", [8000, 11025, 37800, 44100, 96000, 192000])
def test_any_rate_keeps_time_and_level(tmp_path, rate):
    audio = read(write(tmp_path / "clip.wav", clicks([0.5, 1.8], 2.2, rate), rate=rate)).mono
    for time in (0.5, 1.8):
        assert abs(click_time(audio, time) - time) < 1 / RATE
    assert audio.max() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_s64le", "flac"])
def test_any_format_keeps_its_level(tmp_path, codec):
    sound = np.stack([tone(2.2, 300), tone(2.2, 600)])
    path = write(tmp_path / ("clip.flac" if codec == "flac" else "clip.wav"), sound, codec=codec)
    tolerance = 0.01 if codec == "pcm_u8" else 1e-4
    audio = read(path).mono
    np.testing.assert_allclose(audio, sound.mean(0)[: len(audio)], atol=tolerance)


def test_values_that_are_not_finite_are_refused(tmp_path):
    sound = np.stack([tone(2.2)])
    sound[0, RATE] = np.nan
    with pytest.raises(MovaError, match="clip.wav: its sound holds values that are not finite at 0.9"):
        read(write(tmp_path / "clip.wav", sound, codec="pcm_f32le"))


def jittered(size, seed=0):
    rng = np.random.default_rng(seed)
    return lambda time: max(0.0, time + rng.uniform(-size, size))


@pytest.mark.parametrize("drift", [0.99, 0.998, 1.0005, 1.002, 1.01])
def test_a_drifting_clock_is_followed_without_a_click(tmp_path, drift):
    """mkv rounds the stamps to milliseconds besides."""
    path = write(tmp_path / "tone.mkv", tone(2.4)[None], stamp=lambda time: time * drift)
    sound = read(path)
    assert not len(clicks_in(sound.mono)) and len(sound.mono) - sound.covered < 5e-4 * RATE
    spectrum = np.abs(np.fft.rfft(sound.mono[:RATE] * np.hanning(RATE)))
    peak = round(440 / drift)
    beside = np.delete(spectrum, np.arange(peak - 15, peak + 16))
    assert beside.max() < 1e-3 * spectrum.max()
    heard = np.arange(0.25, 2, 0.25)
    path = write(tmp_path / "clicks.mkv", clicks(heard / drift, 2.4), stamp=lambda time: time * drift)
    audio = read(path).mono
    assert max(abs(click_time(audio, time) - time) for time in heard if time < 1.95) < 3e-4


def test_a_drift_that_changes_is_followed(tmp_path):
    """From the count's own pace to 0.6 % slower."""
    warp = np.vectorize(lambda time: time + 0.006 * max(0, time - 0.9))
    heard = np.arange(0.25, 2, 0.25)
    path = write(tmp_path / "clicks.mkv", clicks(heard, 2.4), stamp=lambda time: float(warp(time)))
    audio = read(path).mono
    assert max(abs(click_time(audio, t) - t) for t in warp(heard) if t < 1.95) < 1e-3
    path = write(tmp_path / "tone.mkv", tone(2.4)[None], stamp=lambda time: float(warp(time)))
    assert not len(clicks_in(read(path).mono))


@pytest.mark.parametrize("size", [5e-4, 3e-3, 9e-3])
def test_jitter_neither_stretches_nor_breaks(tmp_path, size):
    sound = read(write(tmp_path / "tone.mkv", tone(2.4)[None], stamp=jittered(size))).mono
    assert not len(clicks_in(sound))
    # Sample for sample the file's own, moved by what the stamps' mean is off.
    moved = [np.abs(sound[400:9000] - tone(1)[400 - k : 9000 - k]).max() for k in range(-50, 51)]
    shift = int(np.argmin(moved)) - 50
    np.testing.assert_allclose(sound[400:], tone(3)[400 - shift : len(sound) - shift], atol=1e-3)
    assert abs(shift) <= RATE * 1e-3


@pytest.mark.parametrize("drift", [1.0, 1.002])
@pytest.mark.parametrize("gap", [0.0213, 0.05, 0.3])
def test_gaps_stay_gaps_with_clean_edges(tmp_path, gap, drift):
    """Sound is missing, and what follows it is in its place; around a drifting clock's gap too."""
    heard = np.array([0.4, 0.9, 1.2, 1.6])
    place = lambda time: drift * (time + (gap if time >= 1 else 0))  # noqa: E731
    path = write(tmp_path / "clicks.mkv", clicks(heard, 2.4), stamp=place)
    audio = read(path).mono
    for time in map(place, heard):
        assert abs(click_time(audio, time) - time) < 1e-3
    path = write(tmp_path / "tone.mkv", tone(2.4)[None], stamp=place)
    sound = read(path)
    border = drift * 47 * 1024 / RATE  # the first chunk that begins after a second
    hole = sound.mono[round((border + 5e-4) * RATE) : round((border + drift * gap - 5e-4) * RATE)]
    assert not hole.any()
    assert len(sound.mono) - sound.covered == pytest.approx(drift * gap * RATE, abs=60)
    assert not len(clicks_in(sound.mono, size=2 * 0.4))  # the fades bend the tone, too


def test_an_overlap_goes_to_the_later_part(tmp_path):
    """What comes twice by 15 ms: the later sound is in its place, and there is no jump."""
    later = lambda time: time - (0.015 if time >= 1 else 0)  # noqa: E731
    audio = read(write(tmp_path / "clicks.mkv", clicks([0.7, 1.3, 1.7], 2.4), stamp=later)).mono
    for time in (0.7, 1.285, 1.685):
        assert abs(click_time(audio, time) - time) < 1e-3
    sound = read(write(tmp_path / "tone.mkv", tone(2.4)[None], stamp=later))
    assert not len(clicks_in(sound.mono, size=3 * 0.4))
    assert sound.covered == len(sound.mono)


def test_stamps_that_fit_no_clock_are_refused(tmp_path):
    """Ten in a hundred: the header says another sample rate than the recorder had."""
    path = write(tmp_path / "clip.mkv", tone(2.4)[None], stamp=lambda time: 1.1 * time)
    with pytest.raises(MovaError, match=r"clip.mkv: .*timestamps do not fit its sample rate \(\+10.0 %\)"):
        read(path)


@pytest.mark.parametrize("frame", [1024 / 48000, 1024 / 44100, 4608 / 44100, 0.06])
@pytest.mark.parametrize("drift", [1.0, 1.0001, 0.9995, 1.002, 1.01, 0.97])
def test_stamps_of_any_frame_size_are_understood(frame, drift):
    """Rounded to milliseconds, one of them wrong, and a gap of 80 ms: two runs, each on its line."""
    starts = frame * np.arange(round(9 / frame))
    true = drift * starts + 0.08 * (starts > 5)
    stamps = np.round(true, 3)
    stamps[len(stamps) // 4] += 0.04
    runs = find_runs(stamps, np.full(len(starts), frame))
    assert [run.first for run in runs] == [0, np.flatnonzero(starts > 5)[0]]
    for run in runs:
        own = slice(run.first, run.last)
        found = np.interp(starts[own] - starts[run.first], run.nominal, run.times)
        assert np.abs(found - true[own]).max() < 7e-4
    assert drift != 1 or not any(run.stretched for run in runs)


def test_a_step_there_and_back_is_found():
    """A gap moves all that follows it; stamps that return to the old line, to the millisecond, were wrong."""
    starts = np.arange(100) * 1024 / 48000
    lengths = np.full(100, 1024 / 48000)
    for step in (0.02, -0.015, 0.3):
        runs = find_runs(starts + step * ((starts > 0.8) & (starts < 1.3)), lengths)
        ((found, run),) = displaced(runs)
        assert run is runs[1] and found == pytest.approx(step, abs=1e-4)
        again = find_runs(starts + step * (starts > 0.8) + step * (starts > 1.3), lengths)
        assert len(again) == 3 and not list(displaced(again))


@pytest.mark.parametrize("wrong", [(0.3, 0.6), (1.1, 1.6), (2.6, 3.0)])
def test_wrong_stamps_are_seen_from_around_the_clip(tmp_path, wrong):
    """Also where the clip, of 2.04 s, begins or ends amid them. Beyond it they do not count."""
    first, last = wrong

    def stamp(time):
        return time + 0.015 * (first <= time < last)

    path = write(tmp_path / "clip.mkv", tone(4)[None], stamp=stamp)
    for start, overlaps in ((0.5, first < 2.5), (1.3, last > 1.3)):
        if overlaps:
            with pytest.raises(MovaError, match=r"clip.mkv: has sound whose timestamps step by \+15 ms and back"):
                read(path, start=start)
        else:
            assert not read(path, start=start).silent


def test_a_coarse_clock_is_jitter():
    """Stamps in ticks of 15.6 ms, as of a system's timer."""
    starts = np.arange(400) * 1024 / 48000
    (run,) = find_runs(np.floor(starts / 0.0156) * 0.0156, np.full(400, 1024 / 48000))
    assert not run.stretched
    assert [(r.first, r.last) for r in find_runs(starts[:1], np.full(1, 0.02))] == [(0, 1)]


def test_stamps_of_any_kind_give_whole_runs_or_a_refusal():
    rng, refused = np.random.default_rng(0), 0
    for _ in range(100):
        lengths = rng.choice([0.0027, 0.0213, 0.1], rng.integers(1, 80))
        stamps = (np.cumsum(lengths) - lengths) * rng.choice([1, 1.002, 0.99, 1.2])
        stamps += rng.uniform(-1, 1, len(stamps)) * rng.choice([0, 1e-3, 0.02])
        stamps[rng.integers(len(stamps)) :] += rng.choice([0, 0.03, 0.3])
        try:
            runs = find_runs(np.maximum.accumulate(stamps), lengths)
        except MovaError:
            refused += 1
            continue
        assert [run.first for run in runs] == [0, *(run.last for run in runs)][:-1] and runs[-1].last == len(stamps)
        for run in runs:
            assert run.nominal[-1] == pytest.approx(lengths[run.first : run.last].sum())
            assert (np.diff(run.times) > 0).all() and (np.diff(run.nominal) > 0).all()
    assert refused < 40
