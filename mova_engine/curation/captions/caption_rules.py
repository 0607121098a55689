"""What models are asked of a clip, from caption_rules.yaml, in the form that prompts have."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from mova_engine.inference.prompts.chat import Message
from mova_engine.inference.prompts.prompt_rules import PromptRules, prompt_rules

FILE = Path(__file__).with_name("caption_rules.yaml")
# A text in JSON.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class CaptionRules:
    """The rules. version: their name, with a digest of the files. form: of captions and prompts alike. words: {role:
    (least, most)} of descriptions. texts: {role: what a model is told}. retry: what it is told of a reply that failed.
    """

    version: str
    form: PromptRules
    words: Mapping[str, tuple[int, int]]
    texts: Mapping[str, str]
    retry: str

    def told(self, role: str) -> str:
        """What a model is told that does a role's work."""
        if role == "merge":
            limits = {"least_words": self.form.least_words, "most_words": self.form.most_words}
            return f"{self.texts[role].format(**limits)}\n{self.form.form}"
        least, most = self.words[role]
        return self.texts[role].format(least=least, most=most)

    def messages(
        self, role: str, text: str, pictures: Sequence[bytes] = (), sound: bytes | None = None
    ) -> list[Message]:
        """What asks for a role's work. text: what it works on."""
        return [Message("system", self.told(role)), Message("user", text, tuple(pictures), sound)]

    def retry_messages(self, messages: Sequence[Message], reply: str, failed: Sequence[str]) -> list[Message]:
        """What asks once more, after a reply that failed these checks."""
        again = self.retry.format(failed="; ".join(failed)).strip()
        return [*messages, Message("assistant", reply), Message("user", again)]


@cache
def caption_rules() -> CaptionRules:
    """The rules of this release."""
    data = FILE.read_bytes()
    table = yaml.safe_load(data)
    form = prompt_rules()
    digest = hashlib.sha256(data + form.version.encode()).hexdigest()[:8]
    return CaptionRules(
        version=f"{table['version']}-{digest}",
        form=form,
        words={role: (least, most) for role, (least, most) in table["words"].items()},
        texts={role: table[role] for role in ("picture", "speech", "sound", "merge")},
        retry=table["retry"],
    )


def as_material(**parts: object) -> str:
    """What a model works on, as a JSON object. Brackets in it are escaped: no template of a chat sees its own marks."""
    escaped = {"<": "\\u003c", ">": "\\u003e", "[": "\\u005b"}
    text = json.dumps(parts, ensure_ascii=False)
    return _STRING.sub(lambda found: "".join(escaped.get(letter, letter) for letter in found[0]), text)
