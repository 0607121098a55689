"""DeSync: windows of segments, the class grid, and what is refused; the network's numbers are in the recorded cases."""

import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.scores.desync import (
    Desync,
    class_grid,
    clip_lengths,
    mono_16k,
    network_pictures,
    score_desync,
    segment_counts,
    sound_segments,
    window_logits,
)
from mova_engine.scores.networks.synchformer import Synchformer


def logits(*classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), 21).float()


def test_desync_is_a_multiple_of_a_tenth_from_0_to_2():
    grid = class_grid()
    pairs = torch.cartesian_prod(torch.arange(21), torch.arange(21))
    scores = score_desync(logits(*pairs[:, 0].tolist()), logits(*pairs[:, 1].tolist()))
    assert grid.dtype == torch.float32 and grid[10] == 0
    for (first, last), score in zip(pairs.tolist(), scores, strict=True):
        assert score.offsets == (pytest.approx(0.2 * (first - 10)), pytest.approx(0.2 * (last - 10)))
        assert score.seconds == pytest.approx(0.1 * (abs(first - 10) + abs(last - 10)))
        assert round(10 * score.seconds, 5).is_integer() and 0 <= score.seconds <= 2
    assert score_desync(logits(10), logits(10)) == [Desync(0.0, (0.0, 0.0))]


class Remembering(torch.nn.Module):
    """Stands for the comparison only: remembers which segments were compared."""

    def compare(self, video, audio):
        assert video.shape[1] == audio.shape[1] == 14
        return torch.stack([video[:, 0, 0, 0], video[:, -1, 0, 0], audio[:, 0, 0, 0], audio[:, -1, 0, 0]], 1)


def numbered(segments, tokens):
    return torch.arange(segments).float().reshape(1, segments, 1, 1).expand(1, segments, tokens, 768)


def test_the_windows_are_the_first_and_the_last_14_segments():
    first, last = window_logits(Remembering(), numbered(23, 8), numbered(23, 6))
    assert first.tolist() == [[0, 13, 0, 13]]
    assert last.tolist() == [[9, 22, 9, 22]]


def test_a_clip_below_14_segments_is_refused():
    assert segment_counts(*clip_lengths(4.79)) == (13, 13)
    assert segment_counts(*clip_lengths(4.8)) == (14, 14)
    assert segment_counts(15, 10239) == (0, 0)
    with torch.device("meta"):
        network = Synchformer()
    with pytest.raises(MovaError, match=r"needs 14 segments .* got 13"):
        window_logits(network, numbered(14, 8), numbered(13, 6))
    with pytest.raises(MovaError, match="no segment of 10240"):
        sound_segments(torch.zeros(1, 10239))
    with pytest.raises(MovaError, match="too short for DeSync: 1600 of 1601"):
        mono_16k(torch.zeros(2, 4800), 48000, 1601)


def test_the_last_column_of_a_segment_is_0_in_the_logarithm():
    """Silence is log(1e-6) everywhere else: padding before the logarithm would give the same there."""
    spectra = sound_segments(torch.zeros(1, 10240 + 5120))
    assert spectra.shape == (1, 2, 128, 66)
    assert spectra[..., 65].unique().tolist() == [pytest.approx(4.2677393 / 9.1379948)]
    assert spectra[..., :65].unique().tolist() == [pytest.approx((-13.815511 + 4.2677393) / 9.1379948, abs=1e-5)]


def test_pictures_of_both_kinds_are_brought_to_the_same_size_and_range():
    noise = torch.rand(2, 3, 90, 160, generator=torch.Generator().manual_seed(0))
    for low, high in ((64, 192), (0, 256)):
        pictures = (low + noise * (high - low)).to(torch.uint8)
        rounded, exact = network_pictures(pictures), network_pictures(pictures / 255)
        assert rounded.shape == exact.shape == (2, 3, 224, 224)
        assert rounded.abs().max() <= 1
        # Rounded after each of two passes: at most two grey levels, where nothing is clamped.
        assert 0 < (rounded - exact).abs().max() < 2.5 * 2 / 255 or low == 0
    assert exact.abs().max() > 1
