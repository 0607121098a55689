"""The functions of the scores of speech: from a decoded clip to {column: number}."""

from functools import lru_cache

import numpy as np

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.speech_activity import NETWORK, RATE, SpeechDetector, longest_pause


def speech_activity(clip: DecodedClip) -> Measured:
    """How much of a clip is speech. Evidence: seconds [start, end] of it from the first picture on."""
    sound = np.asarray(clip.sound_with_pictures(RATE), np.float32)
    if not len(sound):
        raise MovaError("the sound ends before the pictures begin")
    intervals = _detector().intervals(sound)
    seconds = sum(end - start for start, end in intervals)
    values = {"speech_share": seconds * RATE / len(sound), "speech_seconds": seconds}
    if intervals:
        values["longest_pause"] = longest_pause(intervals)
    return Measured(values, [list(each) for each in intervals], "" if intervals else "nobody speaks")


def check_speech_activity() -> None:
    """MovaError without onnxruntime, or without the network's file."""
    require_package("onnxruntime", NETWORK.what)
    NETWORK.path()


def speakers(clip: DecodedClip) -> Measured:
    """How many speak, and whether one after the other. Evidence: [start, end, speaker] of the turns, in seconds."""
    from mova_engine.scores.speakers import RATE as SPEAKERS_RATE
    from mova_engine.scores.speakers import speaker_networks

    found = speaker_networks().find(np.array(clip.sound_with_pictures(SPEAKERS_RATE), np.float32))
    values = {"speakers": float(found.count)}
    if found.seconds:
        values["speaker_main"] = found.seconds[0] / sum(found.seconds)
    if found.spoken:
        values["speakers_together"] = found.together / found.spoken
    turns = [[turn.start, turn.end, turn.speaker] for turn in found.turns]
    return Measured(values, turns, "" if found.seconds else "nobody speaks alone for a second")


def check_speakers() -> None:
    """MovaError without the networks' files."""
    from mova_engine.scores.speakers import TURNS_FILE, VOICES_FILE

    TURNS_FILE.path()
    VOICES_FILE.path()


@lru_cache(1)
def _detector() -> SpeechDetector:
    return SpeechDetector()
