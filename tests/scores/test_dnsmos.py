"""DNSMOS: windows in both conventions, the networks' files, and the real networks on sounds of known ratings."""

import importlib.util

import numpy as np
import pytest
from scipy.io import wavfile

from mova_engine import scores
from mova_engine.errors import MovaError
from mova_engine.scores import dnsmos
from mova_engine.scores.dnsmos import FILES, RATE, WINDOW, Dnsmos, network_file, windows_of

absent = [name for name in ("onnxruntime", "speechmos") if importlib.util.find_spec(name) is None]
needs_networks = pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed; `make setup-dev`")


def ramp(seconds):
    return np.arange(1.0, round(seconds * RATE) + 1)


def test_the_published_windows_of_a_minute_lack_seventeen():
    sound = ramp(60)
    published, hops = windows_of(sound, "mova")
    assert (hops, len(published)) == (51, 34)
    starts = [int(window[0] - 1) // RATE for window in published]
    assert starts == [*range(7), *range(24, 51)]
    corrected, hops = windows_of(sound, "corrected")
    assert (hops, len(corrected)) == (51, 51)
    assert [window[0] - 1 for window in corrected] == [RATE * i for i in range(51)]
    assert all(len(window) == WINDOW for window in (*published, *corrected))


def test_a_clip_is_rated_by_the_convention_that_is_asked_for(tmp_path, monkeypatch):
    """Of 8.05 s, which Verse-Bench's clips last, published scripts rate 7 windows of 8."""
    monkeypatch.setattr(Dnsmos, "p808_outputs", lambda self, windows: np.full(len(windows), float(len(windows))))
    monkeypatch.setattr(Dnsmos, "p835_outputs", lambda self, windows, personalised: np.ones((len(windows), 3)))
    noise = np.random.default_rng(0).integers(-9000, 9000, int(8.05 * RATE), np.int16)
    wavfile.write(tmp_path / "x.wav", RATE, noise)
    windows = {}
    for convention in ("mova", "corrected", "av-benchmark"):
        windows[convention] = scores.get("dnsmos", convention=convention)(tmp_path / "x.wav")["dnsmos_p808"]
    assert windows == {"mova": 7, "corrected": 8, "av-benchmark": 8}


@pytest.mark.parametrize(
    ("seconds", "published", "corrected"), [(9.01, 1, 1), (10.5, 1, 2), (8.05, 7, 8), (5.0, 1, 1), (0.4, 3, 4)]
)
def test_short_sounds_are_doubled_and_the_last_whole_window_counts(seconds, published, corrected):
    sound = ramp(seconds)
    for convention, count in (("mova", published), ("corrected", corrected)):
        found, hops = windows_of(sound, convention)
        assert len(found) == hops == count
        np.testing.assert_array_equal(found[0], np.resize(sound, WINDOW))
        np.testing.assert_array_equal(found[-1], np.resize(sound, 4 * WINDOW)[(hops - 1) * RATE :][:WINDOW])


def test_what_cannot_be_rated_is_refused():
    with pytest.raises(MovaError, match="no sound"):
        windows_of(np.zeros(0), "mova")
    with pytest.raises(MovaError, match="digital silence"):
        windows_of(np.zeros(8000), "corrected")
    assert len(windows_of(np.zeros(8000), "mova")[0]) == 7
    with pytest.raises(MovaError, match="mono"):
        dnsmos.at_16k(np.zeros((2, 100)), RATE)


def test_files_are_checked(tmp_path, monkeypatch):
    with pytest.raises(MovaError, match=r"has no dnsmos_models/model_v8.onnx; .*pip install --no-deps speechmos"):
        network_file("P808", tmp_path)
    (tmp_path / "DNSMOS").mkdir()
    (tmp_path / "DNSMOS" / "sig_bak_ovr.onnx").write_bytes(b"other")
    with pytest.raises(MovaError, match="another file than the published one"):
        network_file("P835", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MovaError, match=r"needs the networks of the wheel speechmos: pip install"):
        network_file("P808")
    with pytest.raises(MovaError, match="needs the package onnxruntime"):
        _ = Dnsmos(tmp_path).p808
    with pytest.raises(MovaError, match=r"at 22050 Hz needs the package soxr.*16000 Hz"):
        dnsmos.at_16k(np.zeros(10), 22050)


@needs_networks
@pytest.mark.networks
@pytest.mark.parametrize("name", ["P835", "P835-personalised"])
def test_what_windows_share_is_computed_once_and_changes_no_bit(name):
    """Three windows, the second of which continues the first, loud and quiet by turns, against the whole network."""
    drawn = np.random.default_rng(0)
    levels = np.repeat(drawn.random(13) ** 4, RATE)
    samples = (levels * drawn.standard_normal(len(levels))).astype(np.float32)
    windows = [samples[second * RATE :][:WINDOW] for second in (0, 1, 3)]
    session = FILES[name].session()
    whole = [session.run(None, {"input_1": window[None]})[0][0] for window in windows]
    network = Dnsmos()
    found = network.p835_outputs(windows, personalised=name != "P835")
    np.testing.assert_array_equal(found, np.array(whole, np.float64))


@needs_networks
@pytest.mark.networks
@pytest.mark.parametrize(
    ("sound", "expected"),
    [
        (lambda n: 0.5 * np.sin(2 * np.pi * 440 * np.arange(n) / RATE), (2.1114, 1.8492, 2.2562, 1.5083)),
        (lambda n: 0.1 * np.random.default_rng(0).standard_normal(n), (2.0801, 1.1592, 1.0939, 1.1140)),
        (np.zeros, (2.1468, 2.5136, 3.4724, 1.8399)),
    ],
    ids=["sine", "noise", "silence"],
)
def test_real_networks_on_known_sounds(sound, expected):
    """8.05 s of each; the ratings were taken from the published scripts and networks."""
    found = Dnsmos().rate(sound(128800), RATE, convention="mova")
    assert (found.p808_mos, found.sig, found.bak, found.ovrl) == pytest.approx(expected, abs=1e-4)
