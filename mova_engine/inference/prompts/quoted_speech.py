"""Finds what stands in quotation marks, in the styles of many languages, and puts it back letter for letter.

Doubt is an error: where marks do not pair, nobody can say what is spoken, and the text is neither rewritten nor taken.
"""

import re
import unicodedata
from dataclasses import dataclass

from mova_engine.errors import MovaError

# What may close what each mark opens.
_CLOSERS = {
    '"': '"', "＂": "＂", "“": "”", "„": "“”", "”": "”", "‟": "”", "❝": "❞", "〝": "〞〟",
    "«": "»", "»": "«»", "‹": "›", "›": "‹›", "「": "」", "『": "』", "｢": "｣", "﹁": "﹂", "﹃": "﹄", "⹂": "”“",
}  # fmt: skip
# Marks that are also apostrophes.
_SINGLE = {"'": "'", "‘": "’", "‚": "‘’", "‛": "’", "’": "’", "❛": "❜", "＇": "＇"}
# Words that begin with an apostrophe.
_ELIDED = re.compile(r"['‘’](?:tis|twas|twere|em|til|till|cause|bout|round|neath|n|s|d|t|\d\ds?)\b", re.IGNORECASE)
# What may be a mark: the search for it is what takes long otherwise.
_CANDIDATE = re.compile(r"[\"']|[^\x00-\x7f]")
# Marks that only close.
_LONE = "」』｣﹂﹄〞〟❞❜"
# Two single marks that stand for a double one.
_DOUBLED = ("``", "''", "‘‘", "’’")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ＇‛´", "'"))


class UnclearSpeechError(MovaError):
    """A text of which it cannot be told what of it stands in quotation marks."""


@dataclass(frozen=True)
class Passage:
    """Text between quotation marks: `text[begin:end]`, without the marks."""

    begin: int
    end: int
    text: str


def passages(text: str) -> list[Passage]:
    """What stands in quotation marks, outermost ones, in its order. Raises UnclearSpeechError for a mark without its
    other half, apart from apostrophes and inches, and for marks that may pair in several ways.
    """
    for doubled in _DOUBLED:
        if doubled in text:
            raise UnclearSpeechError(f"{doubled} is no quotation mark: write “ and ”")
    found, i, has_single = list[Passage](), 0, False
    while next_mark := _CANDIDATE.search(text, i):
        i, mark, end = next_mark.start(), next_mark[0], None
        if mark in _CLOSERS and not _inches(text, i):
            end = _double_end(text, i)
        elif mark in _SINGLE:
            end = _single_end(text, i, has_single)
            has_single = has_single or end is not None
        elif mark in _LONE or unicodedata.category(mark) in ("Pi", "Pf"):
            raise _unpaired(text, i)
        if end is not None:
            found.append(Passage(i + 1, end, text[i + 1 : end]))
            i = end
        i += 1
    return [passage for passage in found if passage.text.strip()]


def outside(text: str) -> str:
    """The text without what stands in quotation marks. Raises UnclearSpeechError."""
    kept, at = list[str](), 0
    for passage in passages(text):
        kept.append(text[at : passage.begin])
        at = passage.end
    return " ".join([*kept, text[at:]])


def put_back(reply: str, prompt: str) -> str:
    """The reply with its quoted passages as the prompt has them, where they differ by no more than the kind of their
    apostrophes, white space, and a last comma or full stop, which models write as their training has it. Raises
    UnclearSpeechError.
    """
    own: dict[str, str] = {}
    for passage in passages(prompt):
        own.setdefault(_loose(passage.text), passage.text)
    exact = set(own.values())
    for passage in reversed(passages(reply)):
        text = passage.text if passage.text in exact else own.get(_loose(passage.text), passage.text)
        reply = reply[: passage.begin] + text + reply[passage.end :]
    return reply


def without_marks(text: str) -> str:
    """The text with its quotation marks taken out, and apostrophes kept: for descriptions, in which nobody speaks."""
    marks = "".join({*_CLOSERS, *"".join(_CLOSERS.values()), *"‘‚‛❛❜"} - {"’"})
    text = text.translate(dict.fromkeys(map(ord, marks)))
    return re.sub(r"(?<!\w)['’]|['’](?!\w)", "", text)


def _loose(text: str) -> str:
    plain = unicodedata.normalize("NFC", text).translate(_APOSTROPHES)
    return " ".join(plain.split()).rstrip(" ,.，。、")


def _unpaired(text: str, i: int) -> UnclearSpeechError:
    before = " ".join(text[max(0, i - 20) : i].split())
    return UnclearSpeechError(f"the quotation mark {text[i]} after '{before}' has no other half: write “ and ”")


def _double_end(text: str, begin: int) -> int:
    """The place of the mark that closes the one at `begin`; marks of the same kind may lie within, where they differ
    from closing ones.
    """
    opener, closers = text[begin], _CLOSERS[text[begin]]
    nests, depth = opener not in closers, 1
    for i in range(begin + 1, len(text)):
        if text[i] in closers:
            depth -= 1
            # "He said "go" to me": what is taken for the end is preceded by a space.
            if not depth and not nests and text[begin + 1 : i].strip() != text[begin + 1 : i]:
                raise _unpaired(text, i)
            if not depth:
                return i
        elif nests and text[i] == opener:
            depth += 1
    raise _unpaired(text, begin)


def _single_end(text: str, begin: int, has_single: bool) -> int | None:
    """Likewise for single marks; None for an apostrophe. has_single: there are passages in single marks before, which
    such a mark may belong to.
    """
    mark, before, after = text[begin], text[begin - 1 : begin], text[begin + 1 : begin + 2]
    if before.isalnum() or not after or after.isspace():
        if has_single and not before.isspace() and not after.isalnum():
            raise _unpaired(text, begin)
        return None
    for i in range(begin + 1, len(text)):
        if text[i] in _SINGLE[mark] and not text[i - 1].isspace() and not text[i + 1 : i + 2].isalnum():
            return i
    if mark in "'‘’" and _ELIDED.match(text, begin):
        return None
    raise _unpaired(text, begin)


def _inches(text: str, i: int) -> bool:
    """Whether a straight mark is the sign of inches: a number before it, and no word after it."""
    return text[i] == '"' and text[i - 1 : i].isdecimal() and not text[i + 1 : i + 2].isalnum()
