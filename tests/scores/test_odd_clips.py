"""Clips that lack something, through every score of the table: each gives its numbers or a reason.

A score that is added is asked here as well: its network joins tests/tiny_networks.py.
"""

import numpy as np
import pytest
import torch
from lossless_clip import write_lossless
from tiny_networks import TinyWeights, tiny_tokens

from mova_engine.errors import MovaError
from mova_engine.scores import clap_score
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.score_file import score_file
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.score_table import SCORES

RATE = 16000
SECONDS = 5
# Networks that run in full here, and what takes as long: in the long suite.
DEAR = {"dnsmos", "av-align", "speech-lag", "text", "transitions"}
# Clips of which TransNet V2 takes no seconds.
SHORT = {"no-picture", "one-frame", "moment"}
# Of networks with weights: what they need of a clip.
NETWORKS = {name for name, score in SCORES.items() if score.weights}
SOUND_ALONE = NETWORKS - {"desync", "imagebind", "lip-sync", "dover"}
PICTURE_ALONE = {"dover"}


def noise(seconds=SECONDS, channels=1, rate=RATE):
    made = np.random.default_rng(0).normal(0, 3000, (int(seconds * rate), channels)).astype(np.int16)
    return made[:, 0] if channels == 1 else made


def scene(count=SECONDS * 25, faces=1, height=96, width=160):
    """Dark, faintly noisy pictures with bright faces in the left and the right half that nod."""
    made = np.random.default_rng(0).integers(0, 40, (count, height, width, 3), np.uint8)
    for i in range(count):
        top = height // 4 + (i // 5) % 3
        for left in (width * 12 // 100, width * 58 // 100)[:faces]:
            made[i, top : top + height // 2, left : left + width * 3 // 10] = 200 + 20 * (i % 2)
    return made


CLIPS = {
    "two-faces": lambda: {"pictures": scene(faces=2), "sound": noise()},
    "no-sound": lambda: {"pictures": scene()},
    "no-picture": lambda: {"sound": noise()},
    "one-frame": lambda: {"pictures": scene(1), "sound": noise()},
    "silence": lambda: {"pictures": scene(), "sound": np.zeros(SECONDS * RATE, np.int16)},
    "no-face": lambda: {"pictures": scene(faces=0), "sound": noise()},
    "six-channels": lambda: {"pictures": scene(), "sound": noise(channels=6, rate=48000), "rate": 48000},
    "portrait": lambda: {"pictures": scene(height=160, width=96), "sound": noise()},
    "film-rate": lambda: {"pictures": scene(SECONDS * 24), "sound": noise(), "fps": "24000/1001"},
    "moment": lambda: {"pictures": scene(3), "sound": noise(0.02)},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """measured(clip, scores, convention): what those scores say of a clip of CLIPS; it is written and decoded once."""
    folder, decoded, weights = tmp_path_factory.mktemp("odd"), {}, TinyWeights()
    patch = pytest.MonkeyPatch()
    patch.setattr(clap_score, "tokenise", tiny_tokens)

    def measure(name, asked, convention="corrected"):
        if name not in decoded:
            made = {key: value for key, value in CLIPS[name]().items() if key != "fps"}
            fps = CLIPS[name]().get("fps", 25)
            decoded[name] = DecodedClip.read(write_lossless(folder / f"{name}.mkv", fps=_rate(fps), **made))
        runner = ScoreRunner(weights, convention=convention)
        return runner.measure(decoded[name], [SCORES[each] for each in asked], "two people talk")

    yield measure
    patch.undo()


def _rate(fps):
    from fractions import Fraction

    return Fraction(fps)


def judged(found, asked):
    """{score: its numbers}, after every number was seen to be in its range and every missing one to have a reason."""
    for name in asked:
        columns = [column for column in SCORES[name].columns if column.name in found.values]
        missing = len(columns) < len(SCORES[name].columns)
        assert not missing or found.reasons.get(name), name
        if not SCORES[name].columns:
            assert (name in found.evidence) != (name in found.reasons), name
        for column in columns:
            value = found.values[column.name]
            assert column.low is None or value >= column.low, column.name
            assert column.high is None or value <= column.high, column.name
    assert all(len(reason) > 10 and "\n" not in reason for reason in found.reasons.values())
    return {name for name in asked if name not in found.reasons}


def light():
    return [name for name, score in SCORES.items() if name not in DEAR and not score.transcripts]


@pytest.mark.parametrize(
    "name", ["no-sound", "no-picture", "one-frame", pytest.param("two-faces", marks=pytest.mark.long)]
)
def test_every_score_of_an_odd_clip_is_a_number_or_a_reason(measured, name):
    found = measured(name, light())
    numbers = judged(found, light()) & NETWORKS
    told = {found.reasons[each] for each in NETWORKS - numbers}
    if name == "two-faces":
        assert numbers == NETWORKS
        assert found.values["face_tracks"] == 2 and found.values["face_coverage"] == 1
        assert found.values["face_seconds"] == pytest.approx(2 * SECONDS)
    if name == "no-sound":
        assert numbers == PICTURE_ALONE and told == {"there is no sound"}
    if name == "no-picture":
        assert numbers == SOUND_ALONE and told == {"there are no pictures"}
    if name == "one-frame":
        assert numbers == SOUND_ALONE | {"imagebind", "dover"}
        assert "14 segments" in found.reasons["desync"]


@pytest.mark.long
@pytest.mark.parametrize("convention", ["mova", "av-benchmark", "corrected"])
@pytest.mark.parametrize("name", CLIPS)
def test_every_score_of_every_odd_clip_by_every_convention(measured, name, convention):
    asked = [each for each, score in SCORES.items() if convention in score.conventions or convention == "corrected"]
    asked = [each for each in asked if each != "transitions" or name in SHORT]
    asked = [each for each in asked if not SCORES[each].transcripts]
    found = measured(name, asked, convention)
    numbers = judged(found, asked)
    if name == "silence" and convention == "corrected":
        assert "digital silence" in found.reasons["clap"] and found.values["silence"] == 1
    if convention == "mova":
        # In pixels at any size: at a quarter of it there is no picture left for the detector.
        assert "too small for the face detector" in found.reasons["lip-sync"] or name in ("no-sound", "no-picture")
    elif name == "no-face" and convention == "corrected":
        assert found.reasons["lip-sync"] == "no picture has a face"
        assert (found.values["face_coverage"], found.values["face_tracks"]) == (0, 0)
    if name in ("two-faces", "portrait", "six-channels", "film-rate"):
        assert numbers >= set(asked) & NETWORKS - {"lip-sync"}
        if convention == "corrected":
            assert found.values["face_tracks"] == (2 if name == "two-faces" else 1)
    if name == "moment":
        assert "desync" not in numbers


def test_a_clip_that_is_cut_short_has_the_scores_of_what_is_left_or_is_refused_by_name(tmp_path):
    whole = write_lossless(tmp_path / "whole.mkv", scene(50), noise(2)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    found = score_file(tmp_path / "cut.mkv", ["loudness", "sound-quality"])
    assert judged(found, ["loudness", "sound-quality"])
    (tmp_path / "stub.mkv").write_bytes(whole[:200])
    with pytest.raises(MovaError, match=r"stub\.mkv"):
        score_file(tmp_path / "stub.mkv", ["loudness"])


@pytest.mark.long
def test_a_score_changes_nothing_of_what_the_next_one_reads(measured):
    """Also in the published conventions, one of which subtracts from the samples that it was given."""
    asked = [name for name in light() if name != "dover"]
    for convention in ("mova", "corrected"):
        forwards, backwards = (measured("two-faces", order, convention) for order in (asked, asked[::-1]))
        assert forwards.values == backwards.values


@pytest.mark.long
def test_a_face_track_ends_with_its_shot(tmp_path):
    """The same face before and after a cut of everything around it: a track of each shot."""
    pictures = scene(60)
    pictures[30:] = np.where(pictures[30:] < 100, pictures[30:] + 100, pictures[30:])
    clip = DecodedClip.read(write_lossless(tmp_path / "cut.mkv", pictures, noise(2.4)))
    found = ScoreRunner(TinyWeights()).run(clip, SCORES["lip-sync"])
    assert (found.values["face_tracks"], found.values["face_seconds"]) == (2, 2.4)


def test_desync_has_the_sign_of_early_sound(tmp_path):
    """A flash 8 segments after its click: the sound is early. Beyond 28 segments only both ends are looked at."""
    for seconds, length in ((5, 9.3), (12, 12)):
        pictures = np.zeros((int(25 * seconds), 32, 48, 3), np.uint8)
        sound = np.random.default_rng(0).normal(0, 1, seconds * RATE).astype(np.int16)
        pictures[64:80] = 255  # segments 7 to 9 see it, 8 all of it
        sound[: int(0.64 * RATE)] *= 3000
        if seconds > length - 1:
            pictures[-60:-44], sound[-60 * 640 - 8 * 5120 : -44 * 640 - 8 * 5120] = 255, 8000
        clip = DecodedClip.read(write_lossless(tmp_path / f"{seconds}.mkv", pictures, sound))
        found = ScoreRunner(TinyWeights()).run(clip, SCORES["desync"])
        assert found.values["desync_offset"] > 1 and found.values["desync"] == found.values["desync_offset"]
        assert found.evidence["video"].shape == (14 if seconds == 5 else 28, 8, 768)


@pytest.mark.long
@torch.no_grad()
def test_chance_levels_come_from_the_features_of_two_clips(measured):
    runner = ScoreRunner(TinyWeights())
    one, other = (measured(name, ["imagebind", "lip-sync", "clap", "desync"]) for name in ("two-faces", "six-channels"))
    for name in ("imagebind", "clap", "desync"):
        own = runner.chance(SCORES[name], one.evidence[name], one.evidence[name])
        assert own == {column: pytest.approx(one.values[column]) for column in own}
    pair = runner.chance(SCORES["lip-sync"], one.evidence["lip-sync"], other.evidence["lip-sync"])
    assert set(pair) == {"lse_d", "lse_c"} and all(np.isfinite(list(pair.values())))
