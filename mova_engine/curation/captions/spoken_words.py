"""What is said in a clip: a transcript as the texts that a caption quotes, and a caption in plain code of all parts."""

import re
from collections.abc import Sequence

from mova_engine.inference.prompts.quoted_speech import without_marks

# How recognisers mark who speaks.
_TAG = re.compile(r"\[[A-Z]+\d*\]")


def spoken_texts(transcript: str) -> tuple[str, ...]:
    """The texts of a transcript, one for each turn where speakers are tagged "[S01]", without quotation marks."""
    turns = (" ".join(without_marks(turn).split()) for turn in _TAG.split(transcript))
    return tuple(turn for turn in turns if any(letter.isalnum() for letter in turn))


def plain_caption(picture: str, spoken: Sequence[str], voices: str, sounds: str) -> str:
    """A caption of descriptions, one after the other: what is seen, what is said in quotation marks, and in a paragraph
    of its own what is heard. voices, sounds: "" where there are none.
    """
    said = [f"{'Somebody says' if i == 0 else 'Then somebody says'} “{text}”" for i, text in enumerate(spoken)]
    seen = " ".join([_ended(picture), *map(_ended, said)])
    heard = [_ended(text) for text in (voices, sounds) if text]
    return f"{seen}\n\nThe audio: {' '.join(heard) if heard else 'nothing is heard, the clip is silent.'}"


def _ended(text: str) -> str:
    """A text that ends as sentences do."""
    text = " ".join(text.split())
    return text if text.rstrip("”").endswith((".", "!", "?", "。", "！", "？")) else f"{text}."
