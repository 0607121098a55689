"""Tells the language of a text by its script and its stop words, without a network and without a model."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("prompt_languages.yaml")
# Names of characters begin with their script's.
_SCRIPTS = {
    "LATIN": "latin", "CYRILLIC": "cyrillic", "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "HANGUL": "hangul",
    "ARABIC": "arabic", "DEVANAGARI": "devanagari", "HEBREW": "hebrew", "GREEK": "greek", "THAI": "thai",
}  # fmt: skip
# Scripts whose words stand without spaces between them.
UNSPACED = frozenset({"han", "kana", "thai"})
# Japanese is written with Chinese characters and kana; so much kana tells it from Chinese.
_KANA_SHARE = 0.1
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Language:
    """What the checks know of a language; words are folded to lower case."""

    code: str
    script: str
    stop: frozenset[str]
    sound: tuple[str, ...]
    says: tuple[str, ...]
    talk: tuple[str, ...]


@cache
def languages() -> dict[str, Language]:
    """All languages that are known, by code."""
    table = yaml.load(FILE.read_text(encoding="utf-8"), yaml.BaseLoader)
    return {
        code: Language(
            code,
            entry["script"],
            frozenset(entry.get("stop", "").casefold().split()),
            tuple(entry["sound"].casefold().split()),
            tuple(entry["says"].casefold().split()),
            tuple(line.casefold() for line in entry["talk"].splitlines()),
        )
        for code, entry in table.items()
    }


def words_of(text: str) -> list[str]:
    """The words of a text, folded to lower case; a run of an unspaced script is one."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())


def script_of(text: str) -> str | None:
    """The script of most letters: "latin", "han" and so on, "other"; None for a text without letters."""
    counts = Counter[str]()
    for character in text:
        if character.isalpha():
            counts[_script(character)] += 1
    if not counts:
        return None
    # Of Chinese characters as many as kana make Japanese; what names are written in Latin letters counts less.
    asian = counts["han"] + counts["kana"]
    if asian and 3 * asian >= counts.total() - asian:
        return "kana" if counts["kana"] >= _KANA_SHARE * asian else "han"
    return counts.most_common(1)[0][0]


def language_of(text: str) -> str | None:
    """The code of a text's language; None where too little tells it, or it is not among those that are known."""
    script = script_of(text)
    known = [language for language in languages().values() if language.script == script]
    if not known or not known[0].stop:
        return known[0].code if known else None
    words = words_of(text)
    hits = sorted(((sum(word in each.stop for word in words), each.code) for each in known), reverse=True)
    if hits[0][0] < 2 or hits[0][0] == hits[1][0]:
        return None
    return hits[0][1]


def is_unspaced(word: str) -> bool:
    """Whether a run of letters is of a script whose words stand without spaces between them."""
    return _script(word[0]) in UNSPACED


def count_words(text: str) -> int:
    """Words of a text; two characters of a script without spaces count as one."""
    unspaced = sum(character.isalpha() and _script(character) in UNSPACED for character in text)
    spaced = "".join(" " if c.isalpha() and _script(c) in UNSPACED else c for c in text)
    return len(re.findall(r"\w[\w'’-]*", spaced)) + (unspaced + 1) // 2


@cache
def _script(character: str) -> str:
    try:
        name = unicodedata.name(character)
    except ValueError:
        return "other"
    return _SCRIPTS.get(name.split()[0].split("-")[0], "other")
