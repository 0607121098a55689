"""Enhances prompts: describes the first frame, rewrites by rules, checks the result in plain code, tries once more.

    from mova_engine.inference.prompts.enhanced_prompt import enhance
    found = enhance("a dog barks at a train", None, model)
    found.prompt, found.used, found.warning

The result is always a prompt to go on with: a rewritten one that passed every check, or the user's own, unchanged, with
the reason.
"""

import io
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from mova_engine.errors import MovaError
from mova_engine.inference.prompts.chat import ChatError, ChatModel
from mova_engine.inference.prompts.enhancement_cache import EnhancementCache
from mova_engine.inference.prompts.prompt_checks import PromptCheck, TextLimit, check_reply, refusal
from mova_engine.inference.prompts.prompt_rules import PromptRules, prompt_rules
from mova_engine.inference.prompts.quoted_speech import UnclearSpeechError, put_back, without_marks

log = logging.getLogger(__name__)
# Tries of the rewriting: the second is told what is wrong with the first.
ATTEMPTS = 2
# Pixels of a picture's longer side that a model is shown.
_SHOWN_SIDE = 768
# Words of a description that are gone on with.
_MOST_DESCRIBED = 400
# What reasoning models think before they reply.
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.S)


@dataclass(frozen=True)
class EnhancedPrompt:
    """A prompt to go on with, and how it came about.

    prompt: the text for the model. original: the user's. used: which of the two `prompt` is. warning: why it is the
    user's own, or what else went wrong on the way. backend, model: what rewrote it; "none" and "" without one.
    attempts: replies that were asked for. rules_version: of the rules. frame: the first frame's description. checks: of
    the last reply, that which is used if one is. cached: no model was asked.
    """

    prompt: str
    original: str
    used: Literal["enhanced", "own"]
    warning: str | None
    backend: str
    model: str
    attempts: int
    rules_version: str
    frame: str | None = None
    checks: tuple[PromptCheck, ...] = ()
    cached: bool = False

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON has them; `read_enhanced` is the reverse."""
        return asdict(self)


def read_enhanced(row: Any) -> EnhancedPrompt:
    """What `as_json` gave. Raises ValueError for anything else."""
    try:
        checks = tuple(PromptCheck(**each) for each in row["checks"])
        found = EnhancedPrompt(**{**row, "checks": checks})
    except (TypeError, KeyError) as error:
        raise ValueError(f"no enhanced prompt: {error}") from None
    texts = found.prompt, found.original, found.backend, found.model, found.rules_version
    if not all(isinstance(text, str) for text in texts) or found.used not in ("enhanced", "own"):
        raise ValueError("no enhanced prompt: fields of other types")
    return found


def enhance(
    prompt: str,
    frame: np.ndarray | None,
    model: ChatModel | None,
    *,
    limit: TextLimit | None = None,
    cache: EnhancementCache | None = None,
    rules: PromptRules | None = None,
) -> EnhancedPrompt:
    """Enhance one prompt.

    frame: the clip's first picture, uint8 [h, w, 3]; described only by a model that sees pictures. model: None leaves
    the prompt as it is. limit: how the text encoder counts. cache: replies that passed are kept there. Raises no error
    for whatever the model does.
    """
    rules = rules or prompt_rules()
    own = EnhancedPrompt(prompt, prompt, "own", None, "none", "", 0, rules.version)
    if model is None:
        return own
    own = replace(own, backend=model.backend, model=model.model)
    if reason := refusal(prompt, rules):
        return replace(own, warning=f"not rewritten: {reason}")
    picture = None if frame is None or not model.sees_pictures else _png(frame)
    parts = [model.backend, model.model, model.identity, rules.version, prompt, picture or b""]
    # What was not described for want of a model that sees is not the same as what had no frame.
    key = None if cache is None else cache.key(*parts, "frame" if frame is not None else "")
    if cache is not None and key is not None and (kept := _from_cache(cache, key, prompt, rules, limit)):
        return kept
    found = _asked(own, picture, frame is not None, model, rules, limit)
    if cache is not None and key is not None and found.used == "enhanced" and found.warning is None:
        try:
            cache.put(key, json.dumps(found.as_json(), ensure_ascii=False))
        except MovaError as error:
            log.warning("an enhanced prompt is not kept: %s", error)
    return found


def _from_cache(
    cache: EnhancementCache, key: str, prompt: str, rules: PromptRules, limit: TextLimit | None
) -> EnhancedPrompt | None:
    """What is kept, checked again: files may have been changed, and the limit may be another model's."""
    text = cache.get(key)
    if text is None:
        return None
    try:
        kept = read_enhanced(json.loads(text))
    except ValueError:
        return None
    checks = check_reply(prompt, kept.prompt, rules, limit) if kept.original == prompt else []
    if not checks or any(check.passed is False for check in checks):
        return None
    return replace(kept, checks=tuple(checks), used="enhanced", cached=True)


def _asked(
    own: EnhancedPrompt,
    picture: bytes | None,
    has_frame: bool,
    model: ChatModel,
    rules: PromptRules,
    limit: TextLimit | None,
) -> EnhancedPrompt:
    description, warning = "", None
    if picture is not None:
        try:
            description = _described(model.reply(rules.description_messages(picture)))
        except ChatError as error:
            warning = f"the first frame was not described: {error}"
    elif has_frame:
        warning = "the first frame was not described: the model is not said to see pictures"
    own = replace(own, frame=description or None)
    messages = rules.rewriting_messages(own.original, description)
    asked, checks, failed = 0, (), list[str]()
    while asked < ATTEMPTS:
        asked += 1
        try:
            reply = model.reply(messages)
        except ChatError as error:
            return replace(own, warning=f"not rewritten: {error}", attempts=asked, checks=checks)
        text = cleaned_reply(reply, own.original)
        checks = tuple(check_reply(own.original, text, rules, limit))
        failed = [check.reason for check in checks if check.passed is False]
        if not failed:
            return replace(own, prompt=text, used="enhanced", warning=warning, attempts=asked, checks=checks)
        messages = rules.retry_messages(messages, text, failed)
    return replace(own, warning=f"not rewritten: {_reasons(failed)}", attempts=asked, checks=checks)


def _reasons(failed: Sequence[str]) -> str:
    return f"the model's last reply failed {len(failed)} of the checks: {'; '.join(failed)}"


def cleaned_reply(reply: str, prompt: str) -> str:
    """A reply without thoughts and white space around it, paragraphs one empty line apart, its speech put back."""
    lines = [" ".join(line.split(" ")).strip() for line in _THOUGHTS.sub("", reply).replace("\r\n", "\n").split("\n")]
    text = "\n\n".join(line for line in lines if line)
    try:
        return put_back(text, prompt)
    except UnclearSpeechError:
        return text


def _described(reply: str) -> str:
    """A description as the rewriting takes it; ChatError for none. It is data, and its quotation marks say nothing."""
    text = without_marks(_THOUGHTS.sub("", reply)).strip()
    words = text.split(" ")
    if not text or len(words) > _MOST_DESCRIBED:
        raise ChatError(f"the description has {len(words) if text else 0} words")
    return text


def _png(frame: np.ndarray) -> bytes:
    """A picture as a PNG file, of at most `_SHOWN_SIDE` pixels."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
