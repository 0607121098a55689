"""Character error rates of transcripts in which speakers are tagged: cpCER and its relatives.

cpCER joins each speaker's turns, compares every speaker of the reference with every one of the hypothesis by edit
distance and takes the cheapest assignment (concatenated minimum-permutation error rate: Watanabe et al. 2020, arXiv
2004.09249, as meeteval computes it, on characters).
"""

import itertools
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from mova_engine.errors import MovaError

SPACES = " \t\r\n"
# What transcripts are compared without, as MOVA's evaluation lists it; ":" and ";" are not in it.
MARKS = "!,?、。！，；？：「」︰『』《》.-|()[]{}\"'…·—～【】〔〕〈〉﹃﹄﹁﹂‘’“”"
_IGNORED = str.maketrans("", "", SPACES + MARKS)
_TAG = re.compile(r"\[S\d+\]")
_ANY_CASE_TAG = re.compile(r"\[[Ss]\d+\]")
_ASIDE = re.compile(r"<[^>]+>")
_FULL_WIDTH = re.compile(r"\s+([，。！？；：])")


@dataclass(frozen=True)
class ErrorCount:
    """Edit operations against a number of reference characters."""

    errors: int
    characters: int

    @property
    def percent(self) -> float:
        """100 x errors / characters; 0 without reference characters, as the reference has it."""
        return 100 * self.errors / self.characters if self.characters else 0.0

    def __add__(self, other: "ErrorCount") -> "ErrorCount":
        return ErrorCount(self.errors + other.errors, self.characters + other.characters)


@dataclass(frozen=True)
class SpeakerComparison:
    """cpCER of one sample. costs [n, n]: distance of each reference speaker (rows) from each hypothesis speaker;
    the smaller side is filled with silent speakers, which have no name in `assignment`.
    """

    count: ErrorCount
    costs: list[list[int]]
    assignment: list[tuple[str | None, str | None]]


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """The least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    numbers = {item: i for i, item in enumerate(dict.fromkeys(itertools.chain(reference, hypothesis)))}
    known = np.array([numbers[item] for item in hypothesis])
    steps = np.arange(len(known) + 1)
    row = steps
    for i, item in enumerate(reference, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (known != numbers[item]))
        # An insertion costs one a step from every cell to its left: a running minimum of cost minus steps.
        row = np.minimum.accumulate(np.concatenate(([i], changed)) - steps) + steps
    return int(row[-1])


def clean_transcript(text: str) -> str:
    """A recogniser's text in one line "[S01] words [S02] words".

    <Asides> go, consecutive turns of a speaker are joined, text before the first tag is dropped.
    """
    turns: list[tuple[str, list[str]]] = []
    tag = None
    for line in re.sub(rf"\s*({_ANY_CASE_TAG.pattern})\s*", r"\n\1 ", _ASIDE.sub("", text)).splitlines():
        line = line.strip()
        if found := _ANY_CASE_TAG.match(line):
            tag, line = found[0].upper(), line[found.end() :].strip()
            if not turns or turns[-1][0] != tag:
                turns.append((tag, []))
        if tag and line:
            turns[-1][1].append(line)
    joined = "\n".join(f"{speaker} {' '.join(words)}" for speaker, words in turns if words)
    return re.sub(r"\s+", " ", _FULL_WIDTH.sub(r"\1", joined)).strip()


def comparable(text: str) -> str:
    """Text without spaces and listed marks, in lower case."""
    return text.translate(_IGNORED).lower()


def by_speaker(transcript: str) -> dict[str, str]:
    """Each speaker's turns, joined and made comparable, by tag in order of first speech."""
    turns: dict[str, str] = {}
    tags = list(_TAG.finditer(transcript))
    for tag, following in itertools.zip_longest(tags, tags[1:]):
        words = transcript[tag.end() : following.start() if following else None]
        turns[tag[0]] = turns.get(tag[0], "") + words.strip()
    return {speaker: comparable(text) for speaker, text in turns.items()}


def cp_cer(reference: str, hypothesis: str) -> SpeakerComparison:
    """cpCER of one tagged transcript. A speaker too many counts as inserted characters."""
    return compare_speakers(by_speaker(reference), by_speaker(hypothesis))


def compare_speakers(known: Mapping[str, str], heard: Mapping[str, str]) -> SpeakerComparison:
    """The cheapest assignment of heard speakers to known ones, each with all that he says."""
    size = max(len(known), len(heard))
    rows, columns = ([*texts.values(), *[""] * (size - len(texts))] for texts in (known, heard))
    costs = [[edit_distance(row, column) for column in columns] for row in rows]
    assignment: list[tuple[str | None, str | None]] = []
    errors = 0
    if size:
        for row, column in zip(*linear_sum_assignment(np.array(costs)), strict=True):
            errors += costs[row][column]
            assignment.append((_at(known, row), _at(heard, column)))
    return SpeakerComparison(ErrorCount(errors, sum(map(len, known.values()))), costs, assignment)


def _at(texts: Mapping[str, str], index: int) -> str | None:
    return list(texts)[index] if index < len(texts) else None


def cer_without_speakers(reference: str, hypothesis: str) -> ErrorCount:
    """The character error rate of the whole text, tags removed."""
    known, heard = (comparable(re.sub(rf"\s*{_TAG.pattern}\s*", " ", text)) for text in (reference, hypothesis))
    return ErrorCount(edit_distance(known, heard), len(known))


def speaker_sequence_error(reference: str, hypothesis: str) -> ErrorCount:
    """The error of the order of speakers, each turn one sign, under the best renaming of the hypothesis' speakers.

    As the reference computes it, above eight speakers no renaming is tried.
    """
    known, heard = _turn_numbers(reference), _turn_numbers(hypothesis)
    if not known and not heard:
        return ErrorCount(0, 0)
    labels = sorted({*known, *heard}, key=str)
    renamings = itertools.permutations(labels) if len(labels) <= 8 else (tuple(labels),)
    best = min(
        edit_distance(known, [renamed[label] for label in heard])
        for renamed in (dict(zip(labels, other, strict=True)) for other in renamings)
    )
    return ErrorCount(best, len(known))


def _turn_numbers(transcript: str) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(tag[2:-1], len(numbers) + 1) for tag in _TAG.findall(transcript)]


def recognised_text(reply: Mapping[str, Any]) -> str:
    """The tagged text of a recogniser's JSON reply.

    A text field that holds tags, else the segments with their speakers, else the full text without speakers, else the
    reply itself as JSON.
    """
    for name in ("text", "result", "transcription", "output", "generated_text"):
        if isinstance(found := reply.get(name), str) and ("[S0" in found or "[S1" in found):
            return found
    result = reply.get("asr_transcription_result", {})
    segments = [
        (segment.get("speaker", "S01"), segment.get("text", "").strip()) for segment in result.get("segments", [])
    ]
    if spoken := " ".join(f"{_speaker_tag(speaker)} {text}" for speaker, text in segments if text):
        return spoken
    return result.get("full_text") or json.dumps(reply, ensure_ascii=False)


def _speaker_tag(speaker: str) -> str:
    number = re.search(r"S(\d+)", speaker)
    return f"[S{int(number[1]):02d}]" if number else f"[{speaker}]"


def seconds_of(time: str) -> float:
    """Seconds of "123.45", "01:23.45" or "1:02:03.5". MovaError for anything else."""
    parts = time.strip().split(":")
    try:
        if len(parts) > 3:
            raise ValueError
        return sum(60**i * float(part) if i == 0 else 60**i * int(part) for i, part in enumerate(reversed(parts)))
    except ValueError:
        raise MovaError(f"'{time}' is no time: seconds, MM:SS or HH:MM:SS are") from None
