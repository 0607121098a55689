"""Error rates of what was heard in a clip against what should be said: cpCER, CER, WER, speakers missed and invented.

Both texts tag speakers as "[S01] words [S02] words". Conventions: `mova` is the published script's way
(mova_engine.scores.speaker_errors); its text before the first tag is lost, so a transcript without tags counts as all
deleted, words under a tag that is no number such as [MULTI] go to the speaker before, and of signs only listed ones are
left out. `corrected` compares letters, marks and digits alone (NFKC, case folded), keeps text before the first tag and
under any tag as a speaker of its own, and gives no cpCER where several speak and the transcript tells no speakers.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import Measured
from mova_engine.scores.speaker_errors import (
    ErrorCount,
    SpeakerComparison,
    cer_without_speakers,
    clean_transcript,
    compare_speakers,
    cp_cer,
    edit_distance,
)

_ANY_TAG = re.compile(r"\[([A-Za-z]\w*)\]")
_ASIDE = re.compile(r"<[^>]+>")
_APOSTROPHES = re.compile("['’ʼ]")
# Scripts that are written without spaces (Thai and Lao, Burmese, Khmer, Japanese, Chinese): each sign counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def transcript_errors(said: str, heard: str, convention: str) -> Measured:
    """Numbers of one clip. Evidence: errors and length by kind, speakers missed and invented.

    said: what should be said; heard: what a recogniser gave. Raises MovaError where nothing should be said.
    """
    if convention == "mova":
        heard = clean_transcript(heard)
        comparison: SpeakerComparison | None = cp_cer(said, heard)
        characters = cer_without_speakers(said, heard)
    else:
        known, told = speakers_of(said), speakers_of(heard)
        comparison = None if len(known) > 1 and told.keys() <= {""} and told else compare_speakers(known, told)
        whole = ["".join(_letters(text) for _, text in _turns(transcript)) for transcript in (said, heard)]
        characters = ErrorCount(edit_distance(*whole), len(whole[0]))
    if not characters.characters:
        raise MovaError("nothing is said in the clip's transcript")
    words = [words_of(transcript) for transcript in (said, heard)]
    counts = {"cer": characters, "wer": ErrorCount(edit_distance(*words), len(words[0]))}
    evidence: dict[str, Any] = {}
    if comparison is not None:
        counts["cpcer"] = comparison.count
        evidence["missed"] = [known for known, told in comparison.assignment if known is not None and told is None]
        evidence["invented"] = [told for known, told in comparison.assignment if known is None and told is not None]
    values: dict[str, float] = {}
    for name, count in counts.items():
        evidence[name] = [count.errors, count.characters]
        values[name] = count.errors / count.characters if count.characters else 0.0
    if comparison is None:
        return Measured(values, evidence, "no diarisation: several speak, and what was heard names no speakers")
    values |= {
        "cpcer_errors": comparison.count.errors,
        "cpcer_characters": comparison.count.characters,
        "speakers_missed": len(evidence["missed"]),
        "speakers_invented": len(evidence["invented"]),
    }
    return Measured(values, evidence)


def speakers_of(transcript: str) -> dict[str, str]:
    """Each speaker's letters in order, by tag; those before the first tag under ""."""
    found: dict[str, str] = {}
    for tag, text in _turns(transcript):
        if letters := _letters(text):
            found[tag] = found.get(tag, "") + letters
    return found


def words_of(transcript: str) -> list[str]:
    """The words of all speakers in order; of scripts without spaces, each sign."""
    text = " ".join(_APOSTROPHES.sub("", _folded(text)) for _, text in _turns(transcript))
    return _WORD.findall("".join(sign if _counts(sign) else " " for sign in text))


def _turns(transcript: str) -> list[tuple[str, str]]:
    parts = _ANY_TAG.split(_ASIDE.sub(" ", transcript))
    return [("", parts[0]), *zip((tag.upper() for tag in parts[1::2]), parts[2::2], strict=True)]


def _letters(text: str) -> str:
    return "".join(filter(_counts, _folded(text)))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _counts(sign: str) -> bool:
    """Whether a sign is a letter, a mark on one, or a digit."""
    return unicodedata.category(sign)[0] in "LMN"


def corpus_cpcer(evidence: Sequence[Any], convention: str) -> tuple[float, str]:
    """Sum of errors by sum of reference characters. MovaError where no clip has any."""
    return _corpus(evidence, "cpcer")


def corpus_cer(evidence: Sequence[Any], convention: str) -> tuple[float, str]:
    """As `corpus_cpcer`, without speakers."""
    return _corpus(evidence, "cer")


def corpus_wer(evidence: Sequence[Any], convention: str) -> tuple[float, str]:
    """As `corpus_cer`, of words."""
    return _corpus(evidence, "wer")


def _corpus(evidence: Sequence[Any], name: str) -> tuple[float, str]:
    counts = [each[name] for each in evidence if name in each]
    length = sum(length for _, length in counts)
    if not length:
        raise MovaError("no clip has what it is made of")
    without = len(evidence) - len(counts)
    note = f"without {without} of {len(evidence)} clips, whose speakers are not told apart" if without else ""
    return sum(errors for errors, _ in counts) / length, note
