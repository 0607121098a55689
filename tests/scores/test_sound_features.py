"""Spectra, mel bands, Kaldi energies and resampling against numbers of librosa, torchaudio and closed forms.

The numbers are what torchaudio 2.11.1 gives for `chirp()`; the recorded cases of the evaluation hold more of them.
"""

import numpy as np
import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import fbank
from mova_engine.scores.features.mel import (
    decibels,
    hertz_to_mel,
    mel_filter_bank,
    mel_spectrum,
    mel_to_hertz,
    power_spectrum,
)
from mova_engine.scores.features.mp3_hop import mp3_rate, through_mp3
from mova_engine.scores.features.resample import resample


def chirp():
    n = np.arange(800)
    return torch.tensor(np.sin(n * n * 2e-3) * 0.5, dtype=torch.float32)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_scales_are_inverse_and_have_their_fixed_points(scale):
    hertz = np.array([0.0, 100.0, 999.0, 1000.0, 6400.0, 20000.0])
    np.testing.assert_allclose(mel_to_hertz(hertz_to_mel(hertz, scale), scale), hertz, atol=1e-9)
    fixed = {"slaney": ([200 / 3, 1000, 6400], [1, 15, 42]), "htk": ([0, 700, 6300], [0, 781.17, 2595])}[scale]
    np.testing.assert_allclose(hertz_to_mel(np.array(fixed[0]), scale), fixed[1], rtol=1e-5, atol=1e-9)


def test_filter_banks_of_both_norms():
    expected = [
        [0, 0, 0, 0],
        [0.2872, 0.7128, 0, 0],
        [0, 0.3779, 0.6221, 0],
        [0, 0, 0.7477, 0.2523],
        [0, 0, 0.2671, 0.7329],
        [0, 0, 0, 0.8710],
        [0, 0, 0, 0.5807],
        [0, 0, 0, 0.2903],
        [0, 0, 0, 0],
    ]
    bank = mel_filter_bank(16000, 16, 4, scale="htk", norm=None)
    torch.testing.assert_close(bank, torch.tensor(expected), atol=6e-5, rtol=0)
    narrow = mel_filter_bank(16000, 16384, 20, 50, 7600, scale="slaney", norm="slaney")
    torch.testing.assert_close(narrow.sum(0) * 16000 / 16384, torch.ones(20), atol=1e-3, rtol=0)


def test_mel_spectrum_with_a_window_shorter_than_the_transform():
    bank = mel_filter_bank(16000, 256, 8, scale="htk", norm=None)
    found = mel_spectrum(chirp(), bank, 160, n_fft=256, window_length=200)
    assert found.shape == (6, 8)
    expected = [[3.6034e02, 2.6930e02, 2.0194e01], [4.6546e-07, 1.3938e-06, 1.1977e-05]]
    torch.testing.assert_close(found[[0, 2], :3], torch.tensor(expected), rtol=2e-2, atol=0)
    torch.testing.assert_close(found[0, :3], torch.tensor(expected[0]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("n_fft", "frames"), [(64, 6), (65, 5)])
def test_spectra_of_batches_have_centred_frames(n_fft, frames):
    """An odd transform pads one sample less than it is long, so the last frame of a whole number of hops is lost."""
    samples = torch.zeros(2, 3, 160)
    samples[1, 2, 64] = 2.0
    power = power_spectrum(samples, n_fft, 32, pad_mode="constant")
    assert power.shape == (2, 3, frames, n_fft // 2 + 1)
    torch.testing.assert_close(power[1, 2, 2], torch.full((n_fft // 2 + 1,), 4.0), rtol=1e-2, atol=0)
    assert power[0].count_nonzero() == 0
    with pytest.raises(MovaError, match="too few"):
        power_spectrum(torch.zeros(32), n_fft, 32)
    assert decibels(power).min() == -100


def test_kaldi_energies():
    found = fbank(chirp(), mels=23, window="povey")
    expected = [[-6.1307, 0.9083, 5.3488, 6.0293, -11.7350], [-12.5211, -15.9424, -13.8107, -1.2186, 8.5491]]
    # The quietest bands are leakage of 1e-6 of the loudest: rounding moves their logarithms.
    torch.testing.assert_close(found[::2, ::5], torch.tensor(expected), atol=3e-3, rtol=0)
    batch = fbank(torch.stack([chirp(), chirp().flip(0)]), mels=23, window="povey")
    torch.testing.assert_close(batch[0], found, atol=1e-4, rtol=0)
    assert fbank(torch.zeros(2, 399)).shape == (2, 0, 128)
    assert fbank(torch.ones(400)).unique().tolist() == [pytest.approx(np.log(2.0**-23))]


@pytest.mark.parametrize(
    ("source", "target", "count", "step", "expected"),
    [
        (44100, 16000, 291, 40, [6.51e-05, -3.6636e-01, 6.2753e-02, -4.2970e-02, -2.185e-04, 5.64e-05]),
        (16000, 24000, 1200, 160, [1.7e-06, -3.4584e-01, 4.1904e-02, -2.8074e-01, -1.6404e-01, -1.3314e-01]),
    ],
)
def test_resampling(source, target, count, step, expected):
    found = resample(chirp(), source, target)
    assert found.shape == (count,)
    torch.testing.assert_close(found[::step][:6], torch.tensor(expected), atol=5e-6, rtol=0)
    many = resample(chirp().expand(2, 3, -1), source, target)
    torch.testing.assert_close(many[1, 2], found, atol=1e-6, rtol=0)
    assert resample(chirp(), source, source).equal(chirp())


@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_delays_by_1105_samples_and_changes_little_else(channels):
    """As ffmpeg 5.1's own AVI file of the talking clip does: 23.0 ms at 48 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 0.1, (24000, channels)), axis=0)
    spectrum[2000:] = 0  # above 4 kHz, where little is kept
    sound = np.fft.irfft(spectrum, axis=0).astype(np.float32)
    given = sound[:, 0] if channels == 1 else sound
    heard = through_mp3(given, 48000).reshape(-1, channels)
    assert len(heard) > len(sound) + 1105
    match = [np.corrcoef(heard[late : late + 20000, 0], sound[:20000, 0])[0, 1] for late in range(1095, 1116)]
    assert 1095 + int(np.argmax(match)) == 1105 and max(match) > 0.99
    assert [mp3_rate(rate) for rate in (48000, 96000, 44100, 16000, 20000)] == [48000, 48000, 44100, 16000, 22050]
