"""The score bounce-sync: known offsets come out with their sign, and what cannot be measured has a reason."""

import numpy as np
import pytest

from mova_engine.data.media.write import write_mp4
from mova_engine.data.synthetic.bounce import Bounce, render_audio, render_video
from mova_engine.scores.clip_bounces import sound_offset
from mova_engine.scores.score_file import score_file

CLIP = Bounce("green", "quick", delay=0.2, column=20.0)  # bounces at 0.5 and 1.1 s


def scored(path, sound):
    write_mp4(path, render_video(CLIP), sound, crf=0)
    return score_file(path, ["bounce-sync"])


@pytest.mark.parametrize("early", [0.0, 0.15, -0.15, 0.06])
def test_the_offset_is_the_seconds_by_which_the_sound_is_early(tmp_path, early):
    sound = np.roll(render_audio(CLIP), -round(early * 48000))
    values = scored(tmp_path / "a.mp4", sound).values
    assert values["bounce_offset"] == pytest.approx(early, abs=0.01)
    assert values["bounce_f1"] == (1 if abs(early) < 0.08 else 0)
    assert values["bounce_f1_moved"] == 1


def test_silence_and_still_pictures_have_reasons(tmp_path):
    silent = scored(tmp_path / "a.mp4", np.zeros(66000))
    assert silent.values == {"bounce_f1": 0} and silent.reasons == {"bounce-sync": "no click is heard"}
    write_mp4(tmp_path / "b.mp4", render_video(CLIP)[:1].repeat(33, 0), render_audio(CLIP))
    still = score_file(tmp_path / "b.mp4", ["bounce-sync"])
    assert not still.values and still.reasons == {"bounce-sync": "no bounce is seen"}


def test_the_offset_is_that_of_most_pairs_and_of_several_the_smallest():
    assert sound_offset([0.5, 1.1], [0.6, 1.2]) == pytest.approx(-0.1)
    assert sound_offset([0.5, 1.1, 1.6], [0.6, 1.2, 1.58]) == pytest.approx(-0.1)
    assert sound_offset([0.5], [0.45, 0.7]) == pytest.approx(0.05)
    assert sound_offset([0.5], [1.2]) is None
