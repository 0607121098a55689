"""Error rates of transcripts: meeteval's published cases, and what the published convention loses."""

import pytest

from mova_engine.errors import MovaError
from mova_engine.scores.transcript_errors import (
    corpus_cer,
    corpus_cpcer,
    corpus_wer,
    speakers_of,
    transcript_errors,
    words_of,
)


def tagged(*speakers):
    return " ".join(f"[S{i:02d}] {words}" for i, words in enumerate(speakers, 1))


@pytest.mark.parametrize(
    ("said", "heard", "errors", "length", "missed", "invented"),
    [
        (("a b", "c d"), ("a b", "c d", "e f"), 2, 4, 0, 1),
        (("a", "b", "c d"), ("a", "b"), 2, 4, 1, 0),
        (("a", "b", "c"), ("b", "c", "d", "a"), 1, 3, 0, 1),
        (("a b",), ("z", "a e f"), 3, 2, 0, 1),
        (("a b", "k"), ("a e f",), 3, 3, 1, 0),
    ],
)
@pytest.mark.parametrize("convention", ["mova", "corrected"])
def test_published_cases_of_meeteval(said, heard, errors, length, missed, invented, convention):
    found = transcript_errors(tagged(*said), tagged(*heard), convention).values
    assert (found["cpcer_errors"], found["cpcer_characters"]) == (errors, length)
    assert found["cpcer"] == errors / length
    assert (found["speakers_missed"], found["speakers_invented"]) == (missed, invented)


def test_missed_and_invented_speakers_are_named():
    found = transcript_errors("[S01] hello there [S02] yes", "[S07] hello there", "corrected")
    assert (found.evidence["missed"], found.evidence["invented"]) == (["S02"], [])
    found = transcript_errors("[S01] hello there", "[S01] no [S02] hello there", "corrected")
    assert (found.evidence["missed"], found.evidence["invented"]) == ([], ["S01"])


def test_what_the_published_convention_loses():
    said = "[S01] Good morning. [S02] Hello!"
    # Text before the first tag.
    assert transcript_errors(said, "Good morning [S02] hello", "mova").values["cpcer_errors"] == 11
    assert transcript_errors(said, "Good morning [S02] hello", "corrected").values["cpcer_errors"] == 0
    # Another sign than those that it lists.
    assert transcript_errors(said, "[S01] Good morning: [S02] Hello;", "mova").values["cpcer_errors"] == 2
    assert transcript_errors(said, "[S01] Good morning: [S02] Hello;", "corrected").values["cpcer_errors"] == 0
    # Words under a tag without a number belong to the speaker before.
    several = "[S01] good morning [S02] hello [MULTI] bye"
    assert transcript_errors(said, several, "mova").values["speakers_invented"] == 0
    assert transcript_errors(said, several, "corrected").values["speakers_invented"] == 1


def test_a_transcript_without_speakers_has_no_cpcer_where_several_speak():
    said = "[S01] Good morning. [S02] Hello!"
    found = transcript_errors(said, "Good morning, hello.", "corrected")
    assert (found.values["cer"], found.values["wer"]) == (0, 0) and "cpcer" not in found.values
    assert "no diarisation" in found.reason
    assert transcript_errors(said, "Good morning, hello.", "mova").values["cpcer"] == 1
    alone = transcript_errors("[S01] Good morning.", "good morning", "corrected").values
    assert (alone["cpcer"], alone["speakers_missed"], alone["speakers_invented"]) == (0, 0, 0)
    # Silence is an answer: all is deleted.
    silent = transcript_errors(said, "", "corrected").values
    assert (silent["cpcer"], silent["cer"], silent["wer"], silent["speakers_missed"]) == (1, 1, 1, 2)


def test_nothing_said_has_no_rate():
    for convention in ("mova", "corrected"):
        with pytest.raises(MovaError, match="nothing is said"):
            transcript_errors("[S01] ...", "[S01] hello", convention)


def test_letters_and_words_in_several_scripts():
    assert speakers_of("<laughs> [s1] ＡＢＣ, naïve Straße! [S02] 你好。") == {"S1": "abcnaïvestrasse", "S02": "你好"}
    assert words_of("[S01] Don't panic - it’s 5 o'clock. [S02] 你好 world") == [
        "dont", "panic", "its", "5", "oclock", "你", "好", "world",
    ]  # fmt: skip


def test_a_corpus_sums_errors_and_lengths():
    pairs = [("[S01] ab", "[S01] ab"), ("[S01] abcdef", "[S01] abc"), ("[S01] a [S02] b", "a b c")]
    evidence = [transcript_errors(*pair, "corrected").evidence for pair in pairs]
    assert corpus_cer(evidence, "corrected") == (4 / 10, "")
    assert corpus_wer(evidence, "corrected") == (2 / 4, "")
    rate, note = corpus_cpcer(evidence, "corrected")
    assert rate == 3 / 8 and "without 1 of 3 clips" in note
    with pytest.raises(MovaError):
        corpus_cpcer([], "corrected")
