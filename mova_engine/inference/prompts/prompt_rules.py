"""The rules of rewriting, from prompt_rules.yaml, and the messages that they make for a language model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from mova_engine.inference.prompts.chat import Message
from mova_engine.inference.prompts.prompt_language import FILE as LANGUAGES

FILE = Path(__file__).with_name("prompt_rules.yaml")


@dataclass(frozen=True)
class RewrittenExample:
    """A prompt, the description of its first frame ("": none), and what it becomes."""

    prompt: str
    frame: str
    reply: str


@dataclass(frozen=True)
class PromptRules:
    """The rules. version: their name, with a digest of the files, so that no change goes unseen.

    least_words, most_words: of a rewritten prompt. kept_share: of the prompt's content words. form, describe, rewrite,
    retry: texts for the model.
    """

    version: str
    least_words: int
    most_words: int
    kept_share: float
    form: str
    describe: str
    rewrite: str
    retry: str
    examples: tuple[RewrittenExample, ...]

    def description_messages(self, picture: bytes) -> list[Message]:
        """What asks for a description of a picture (a PNG file's bytes)."""
        return [Message("system", self.describe), Message("user", "The first frame.", (picture,))]

    def rewriting_messages(self, prompt: str, frame: str) -> list[Message]:
        """What asks to rewrite a prompt. frame: its first frame's description, "" without one."""
        limits = {"least_words": self.least_words, "most_words": self.most_words}
        messages = [Message("system", f"{self.rewrite.format(**limits)}\n{self.form}")]
        for example in self.examples:
            messages.append(Message("user", as_data(example.prompt, example.frame)))
            messages.append(Message("assistant", example.reply))
        return [*messages, Message("user", as_data(prompt, frame))]

    def retry_messages(self, messages: Sequence[Message], reply: str, failed: Sequence[str]) -> list[Message]:
        """What asks once more, after a reply that broke the rules `failed`."""
        again = self.retry.format(failed="; ".join(failed)).strip()
        return [*messages, Message("assistant", reply), Message("user", again)]

    @property
    def own_text(self) -> str:
        """What a reply may not repeat: what the model is told."""
        return "\n".join([self.describe, self.rewrite, self.form, *(example.reply for example in self.examples)])


def as_data(prompt: str, frame: str) -> str:
    """A user's text as a JSON object. Brackets are escaped: no template of a chat sees one of its own marks in it."""
    data = {"prompt": prompt, **({"frame": frame} if frame else {})}
    text = json.dumps(data, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("[", "\\u005b")


@cache
def prompt_rules() -> PromptRules:
    """The rules of this release."""
    data = FILE.read_bytes()
    table = yaml.safe_load(data)
    examples = tuple(
        RewrittenExample(each["prompt"], each.get("frame", "").strip(), unwrapped(each["reply"]))
        for each in table["examples"]
    )
    digest = hashlib.sha256(data + LANGUAGES.read_bytes()).hexdigest()[:8]
    return PromptRules(
        version=f"{table['version']}-{digest}",
        **{name: table[name] for name in ("least_words", "most_words", "kept_share")},
        **{name: table[name] for name in ("form", "describe", "rewrite", "retry")},
        examples=examples,
    )


def unwrapped(text: str) -> str:
    """Paragraphs of a file's text, each on one line."""
    lines = (paragraph.split("\n") for paragraph in text.strip().split("\n\n"))
    return "\n\n".join(_joined([line.strip() for line in paragraph]) for paragraph in lines)


def _joined(lines: list[str]) -> str:
    # Chinese has no space where a line of the file ends.
    text = lines[0]
    for line in lines[1:]:
        text += line if ord(text[-1]) > 0x2E7F else f" {line}"
    return text
