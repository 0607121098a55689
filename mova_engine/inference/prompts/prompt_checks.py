"""Checks a rewritten prompt in plain code, against the prompt that it was made from.

Whatever a model was told, by us or by whoever wrote the prompt, only what passes all of these is taken.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from mova_engine.data.text import flaw, shown
from mova_engine.inference.prompts.prompt_language import (
    UNSPACED,
    count_words,
    is_unspaced,
    language_of,
    languages,
    script_of,
    words_of,
)
from mova_engine.inference.prompts.prompt_rules import PromptRules
from mova_engine.inference.prompts.quoted_speech import UnclearSpeechError, outside, passages

# Words of a paragraph among which it says that it is about the sound, characters where words are not spaced, and its
# least number of words.
_SOUND_WITHIN, _SOUND_WITHIN_UNSPACED, _LEAST_OF_SOUND = 12, 16, 5
# Words in a row that a reply may not share with the instructions.
_REPEATED = 10
# Words in a row that may not come so many times.
_LOOP, _TIMES = 5, 3
# Letters by which content words are compared, so that endings may differ.
_STEM = 5
_MARKUP = (
    (re.compile(r"```|`"), "code marks"),
    (re.compile(r"^\s*#+\s", re.M), "a heading"),
    (re.compile(r"\*\*|__|^\s*\*\s", re.M), "emphasis or a list"),
    (re.compile(r"^\s*[-–—•]\s*\S", re.M), "a list or a dialogue dash"),
    (re.compile(r"^\s*\d{1,2}[.)]\s", re.M), "a numbered list"),
    (re.compile(r"<\s*[a-z/!?|｜]|<<|>>", re.I), "tags"),
    (re.compile(r"[{}]|^\s*\["), "JSON or braces"),
    (re.compile(r"\]\(|https?://|www\."), "a link"),
    (re.compile(r"&[a-z]{2,8};|&#"), "HTML entities"),
    (re.compile(r"\|.*\|"), "a table"),
)


@dataclass(frozen=True)
class PromptCheck:
    """One check. passed: None where it could not be made. reason: of a failure, in words that the model is told too."""

    name: str
    passed: bool | None
    reason: str = ""


@dataclass(frozen=True)
class TextLimit:
    """What a text encoder takes: count(text), with what it adds of its own, may be at most `most`."""

    count: Callable[[str], int]
    most: int


def refusal(prompt: str, rules: PromptRules) -> str | None:
    """Why a prompt is not rewritten at all: nobody could check the result; None if it can be."""
    if reason := flaw(prompt):
        return f"the prompt {reason}"
    if not words_of(prompt):
        return "the prompt has no words"
    try:
        plain = outside(prompt)
    except UnclearSpeechError as error:
        return f"what is spoken in the prompt is not clear: {error}"
    if said := _unmarked_speech(plain):
        return f"what is spoken in the prompt is not clear: put what follows '{said}' in quotation marks"
    if count_words(prompt) > rules.most_words:
        return f"the prompt has {count_words(prompt)} words already; rewritten ones have at most {rules.most_words}"
    return None


def check_reply(prompt: str, reply: str, rules: PromptRules, limit: TextLimit | None) -> list[PromptCheck]:
    """All checks of a reply, in their order; `prompt` is one without `refusal`. limit: None where no text encoder is
    known, whose tokens are then not counted.
    """
    try:
        plain = outside(reply)
        speech = _check_speech(prompt, reply)
    except UnclearSpeechError as error:
        plain, speech = reply, [PromptCheck("speech", False, str(error)), PromptCheck("new speech", None)]
    said = _unmarked_speech(plain)
    if said and all(check.passed for check in speech):
        speech[1] = PromptCheck("new speech", False, f"after '{said}' something is said without quotation marks")
    code = language_of(outside(prompt))
    return [
        *speech,
        _check_language(outside(prompt), plain),
        _check_subject(prompt, reply, rules.kept_share),
        _check_sound(reply, code or language_of(plain)),
        _check_count(reply, rules.least_words, rules.most_words),
        _check_tokens(reply, limit),
        _check_markup(plain),
        _check_talk(prompt, reply),
        check_told(prompt, reply, rules.own_text),
        _check_characters(reply),
    ]


def check_description(text: str, least_words: int, most_words: int, told: str) -> list[PromptCheck]:
    """All checks of a description of a picture or a sound, in which nothing stands in quotation marks. told: what the
    model was told, which the description may not repeat.
    """
    reason = "it must have no quotation marks" if any(mark in text for mark in _QUOTES) else ""
    if not reason and (said := _unmarked_speech(text)):
        reason = f"after '{said}' nothing may be told word for word"
    return [
        PromptCheck("speech", not reason, reason),
        _check_count(text, least_words, most_words),
        _check_markup(text),
        _check_talk("", text),
        check_told("", text, told),
        check_loops(text),
        _check_characters(text),
    ]


def check_loops(text: str) -> PromptCheck:
    """That a text does not say the same again and again, as models do that are stuck: five words in a row thrice, or
    one word four times in a row.
    """
    words = _pieces(text)
    rows = Counter(tuple(words[i : i + _LOOP]) for i in range(len(words) - _LOOP + 1))
    stuck = any(len(set(words[i : i + 4])) == 1 for i in range(len(words) - 3))
    looping = stuck or max(rows.values(), default=0) >= _TIMES
    return PromptCheck("loops", not looping, "it must not say the same words again and again" if looping else "")


def _check_speech(prompt: str, reply: str) -> list[PromptCheck]:
    """That all passages of the prompt are said, in their order, and no others. The paragraph about the sound may name
    each of them once more.
    """
    wanted = [passage.text for passage in passages(prompt)]
    last = reply.rstrip().rfind("\n")
    found = passages(reply)
    parts = [[p.text for p in found if p.begin <= last], [p.text for p in found if p.begin > last]]
    invented = [text for part in parts for text in part if text not in wanted]
    missing = [text for text in wanted if text not in parts[0] + parts[1]]
    new = PromptCheck("new speech", not invented)
    if invented:
        new = PromptCheck("new speech", False, f"'{shown(invented[0])}' in quotation marks is not in the prompt")
    if missing:
        text = f"the words in quotation marks '{shown(missing[0])}' must stand there letter for letter"
        return [PromptCheck("speech", False, text), new]
    if not invented and not all(_in_order(part, wanted) for part in parts):
        text = "what stands in quotation marks must stand there once, in the order of the prompt"
        return [PromptCheck("speech", False, text), new]
    return [PromptCheck("speech", True), new]


def _in_order(part: list[str], wanted: list[str]) -> bool:
    """Whether `part` is a subsequence of `wanted`."""
    rest = iter(wanted)
    return all(text in rest for text in part)


def _unmarked_speech(plain: str) -> str | None:
    """A verb of speech with a colon after it, in a text whose quoted passages are taken out, where no mark follows."""
    found = _speaking().search(plain) if ":" in plain or "：" in plain else None
    return found[0].strip() if found else None


@cache
def _speaking() -> re.Pattern[str]:
    # Words of scripts without spaces follow one another.
    edges = [("" if each.script in UNSPACED else r"\b", each.says) for each in languages().values()]
    verbs = "|".join(f"{edge}{re.escape(verb)}" for edge, says in edges for verb in says)
    return re.compile(rf"(?:{verbs})\s*[:：]\s*(?=[^\s{_OPENING}])", re.I)


_OPENING = re.escape("\"＂“„”‟❝〝«»‹›「『｢﹁⹂'‘‚‛’❛＇")
# Marks that are no apostrophes.
_QUOTES = '"＂“„”‟❝❞〝〞«»‹›「」『』｢｣'


def _check_language(prompt: str, reply: str) -> PromptCheck:
    """That the reply is in the prompt's language, both without what is quoted."""
    asked, given = language_of(prompt), language_of(reply)
    before, after = script_of(prompt), script_of(reply)
    # Without words of its own outside of quotation marks a prompt asks for no language.
    if before is None:
        return PromptCheck("language", after is not None, "" if after else "there are no words outside of quotes")
    # Kanji alone are a prompt in Japanese as well as one in Chinese.
    if before != after and not (before == "han" and after == "kana" and len(words_of(prompt)) < 3):
        return PromptCheck("language", False, f"it must be in the prompt's language, in {before} letters")
    if asked is not None and given is not None and asked != given and before == after:
        return PromptCheck("language", False, f"it must be in the prompt's language, {asked}, not {given}")
    if asked is not None and given is None:
        return PromptCheck("language", False, f"it must be in the prompt's language, {asked}")
    return PromptCheck("language", True)


def _check_subject(prompt: str, reply: str, share: float) -> PromptCheck:
    """That the prompt's content words come again: a translation, an answer and another clip have none of them."""
    wanted = _stems(outside(prompt)) or _stems(prompt)
    if not wanted:
        return PromptCheck("subject", True)
    found = _stems(reply)
    missing = [stem for stem in wanted if stem not in found]
    if len(wanted) - len(missing) >= share * len(wanted):
        return PromptCheck("subject", True)
    return PromptCheck("subject", False, "it must be about what the prompt asks for, in its own words")


def _stems(text: str) -> dict[str, None]:
    """Beginnings of content words, pairs of characters where words are not spaced; in their order, each once."""
    stop = _stop_words()
    stems = dict[str, None]()
    for word in words_of(text):
        if is_unspaced(word):
            stems |= dict.fromkeys(word[i : i + 2] for i in range(max(1, len(word) - 1)))
        elif len(word) > 2 and word not in stop:
            stems[word[:_STEM]] = None
    return stems


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(word for language in languages().values() for word in language.stop)


def _check_sound(reply: str, code: str | None) -> PromptCheck:
    """That there are several paragraphs, the last of which is about the sound."""
    paragraphs = [line for line in reply.split("\n") if line.strip()]
    last, words = paragraphs[-1] if paragraphs else "", words_of(paragraphs[-1]) if paragraphs else []
    known = languages()
    stems = tuple(stem for each in ([known[code]] if code else known.values()) for stem in each.sound)
    if script_of(last) in UNSPACED:
        told = any(stem in last[:_SOUND_WITHIN_UNSPACED] for stem in stems)
    else:
        told = any(word.startswith(stems) for word in words[:_SOUND_WITHIN])
    if len(paragraphs) > 1 and told and count_words(last) >= _LEAST_OF_SOUND:
        return PromptCheck("sound", True)
    return PromptCheck("sound", False, "the last of several paragraphs must be about what is heard, and begin with it")


def _check_count(text: str, least: int, most: int) -> PromptCheck:
    words = count_words(text)
    if least <= words <= most:
        return PromptCheck("words", True)
    return PromptCheck("words", False, f"it has {words} words, must have {least} to {most}")


def _check_tokens(reply: str, limit: TextLimit | None) -> PromptCheck:
    if limit is None:
        return PromptCheck("tokens", None, "no model folder says how the text encoder counts")
    count = limit.count(reply)
    if count <= limit.most:
        return PromptCheck("tokens", True)
    return PromptCheck("tokens", False, f"it is too long: {count} tokens of the text encoder, which takes {limit.most}")


def _check_markup(plain: str) -> PromptCheck:
    found = [what for pattern, what in _MARKUP if pattern.search(plain)]
    return PromptCheck("markup", not found, f"it must be plain text, without {found[0]}" if found else "")


def _check_talk(prompt: str, reply: str) -> PromptCheck:
    """That the reply does not speak to the user, or of itself."""
    start = reply.lstrip(" \n\"'“«*").casefold()
    for language in languages().values():
        for opening in language.talk:
            end = start[len(opening) : len(opening) + 1]
            # A prompt may begin so itself.
            if start.startswith(opening) and not (end.isalpha() and language.script not in UNSPACED):
                if prompt.casefold().startswith(opening):
                    continue
                return PromptCheck("talk", False, "it must be the prompt alone, without a word about it")
    first = reply.strip().split("\n")[0]
    if first.rstrip().endswith((":", "：")):
        return PromptCheck("talk", False, "it must be the prompt alone, without a title")
    return PromptCheck("talk", True)


def check_told(prompt: str, reply: str, told: str) -> PromptCheck:
    """That a reply repeats nothing of what its model was told, instructions or examples, that is not in the prompt."""
    passed = not ((_runs(reply) & _told_runs(told)) - _runs(prompt))
    return PromptCheck("repetition", passed, "" if passed else "it must not repeat the instructions or the examples")


@cache
def _told_runs(told: str) -> set[tuple[str, ...]]:
    return _runs(told)


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of words; of characters where words are not spaced."""
    words = _pieces(text)
    return {tuple(words[i : i + _REPEATED]) for i in range(len(words) - _REPEATED + 1)}


def _pieces(text: str) -> list[str]:
    """Words, and characters where words are not spaced."""
    return [piece for word in words_of(text) for piece in (word if is_unspaced(word) else [word])]


def _check_characters(reply: str) -> PromptCheck:
    reason = flaw(reply)
    if reason is None and any(not (c.isprintable() or c in "\n　") for c in reply):
        reason = "holds control characters"
    return PromptCheck("characters", reason is None, f"it {reason}" if reason else "")
