"""Captions one clip: asks a model for each part, checks each reply, asks once more where one failed, and merges."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from mova_engine.config.captions import CaptionRole, CaptionSettings
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.curation.captions.caption_material import ClipMaterial, read_material
from mova_engine.curation.captions.caption_rules import CaptionRules, as_material, caption_rules
from mova_engine.curation.captions.caption_store import CaptionStore, row_key
from mova_engine.curation.captions.spoken_words import plain_caption, spoken_texts
from mova_engine.data.text import flaw
from mova_engine.errors import MovaError
from mova_engine.inference.prompts.chat import ChatError, ChatModel, CutReplyError, Message
from mova_engine.inference.prompts.chat_endpoint import ChatEndpoint
from mova_engine.inference.prompts.enhanced_prompt import cleaned_reply
from mova_engine.inference.prompts.prompt_checks import (
    PromptCheck,
    check_description,
    check_loops,
    check_reply,
    check_told,
    refusal,
)
from mova_engine.inference.prompts.quoted_speech import UnclearSpeechError, outside, without_marks
from mova_engine.scores.recognisers import Endpoint, EndpointOptions, LocalWhisper, Recogniser

# Replies that are asked for: the second is told what is wrong with the first.
ATTEMPTS = 2
# Clips in a row for which a server gave nothing, after which it is not asked again in this run.
MOST_SILENT = 8
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Caption:
    """What was found for a clip. text: the caption; None where there is none, and reason says why. passing: the reason
    is a server's or the machine's, and another run may have a caption. spoken: what is said, in its order. parts:
    {role: what its model said}.
    """

    clip: str
    text: str | None
    reason: str = ""
    passing: bool = False
    spoken: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict[str, str])


class _NoCaptionError(Exception):
    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.passing = reason, passing


class _ClipAsked:
    """A clip that is being captioned; its pictures and sound are read when they are first needed."""

    def __init__(self, row: Row, settings: CaptionSettings) -> None:
        self.row, self.id, self.parts = row, str(row["clip_id"]), dict[str, str]()
        self.spoken: tuple[str, ...] = ()
        self._settings = settings
        self._read: ClipMaterial | None = None

    @property
    def material(self) -> ClipMaterial:
        if self._read is None:
            try:
                self._read = read_material(self.row, self._settings.pictures, self._settings.side)
            except MovaError as error:
                raise _NoCaptionError(f"the clip cannot be read: {error}", passing=True) from None
        return self._read

    @property
    def edited(self) -> str:
        """How the sound differs from what the clip's id says."""
        return str([float(self.row.get(name) or 0) for name in ("sound_shift", "gain_db")])

    @property
    def speaks(self) -> bool:
        """Whether somebody is known to speak, or nothing is known of it."""
        kind = self.row.get("kind")
        return kind is None or str(kind).startswith("speech")


class ClipCaptioner:
    """Models as settings name them, opened once. May be called from several threads.

    Raises MovaError where a model cannot be used: without httpx or faster-whisper, without the key's variable.
    """

    def __init__(self, settings: CaptionSettings, store: CaptionStore) -> None:
        self._settings, self._store = settings, store
        self._rules = caption_rules()
        self._models, self._recogniser = open_models(settings)
        # A model on this machine takes one clip at a time.
        self._turn = threading.Lock() if settings.whisper is not None else nullcontext()
        self._silent = dict.fromkeys(settings.roles, 0)
        self._last: dict[str, str] = {}

    def caption(self, row: Row) -> Caption:
        """The caption of a clip, a row of `clips.parquet`. Raises no error for whatever a model or a file does."""
        clip = _ClipAsked(row, self._settings)
        try:
            text = self._caption(clip)
        except _NoCaptionError as error:
            return Caption(clip.id, None, error.reason, error.passing, clip.spoken, clip.parts)
        return Caption(clip.id, text, "", False, clip.spoken, clip.parts)

    def _caption(self, clip: _ClipAsked) -> str:
        picture = self._described("picture", clip, "The pictures of the clip.")
        if clip.speaks and self._recogniser is not None:
            clip.spoken = spoken_texts(self._transcript(clip, self._recogniser))
        voices = ""
        if clip.speaks and "speech" in self._models and (clip.spoken or self._recogniser is None):
            voices = self._described("speech", clip, as_material(spoken=clip.spoken))
        sounds = self._described("sound", clip, "The sound of the clip.")
        plain = plain_caption(picture, clip.spoken, voices, sounds)
        if reason := refusal(plain, self._rules.form):
            raise _NoCaptionError(f"merge: {reason}")
        if "merge" not in self._models:
            failed = _failed(check_caption(plain, plain, self._rules))
            if failed:
                raise _NoCaptionError(f"merge: {failed}")
            return plain
        material = as_material(picture=picture, spoken=clip.spoken, voices=voices, sounds=sounds)
        return self._asked(
            "merge",
            clip,
            material,
            lambda reply: cleaned_reply(reply, plain),
            lambda text: check_caption(plain, text, self._rules),
        )

    def _described(self, role: CaptionRole, clip: _ClipAsked, text: str) -> str:
        """A description in one line, without quotation marks; of a sound "" where nothing is heard."""
        least, most = self._rules.words[role]
        told = self._rules.told(role)
        return self._asked(
            role,
            clip,
            text,
            lambda reply: " ".join(without_marks(cleaned_reply(reply, "")).split()),
            lambda found: check_description(found, least, most, told),
        )

    def _asked(
        self,
        role: CaptionRole,
        clip: _ClipAsked,
        text: str,
        clean: Callable[[str], str],
        checks: Callable[[str], list[PromptCheck]],
    ) -> str:
        model = self._models[role]
        settings = self._settings
        asked = [settings.temperature, settings.seed, settings.most_tokens, settings.pictures, settings.side]
        key = row_key(clip.id, role, model.model, self._rules.version, text, str(asked), clip.edited)

        def reply_of(messages: Sequence[Message]) -> tuple[str, str]:
            reply = model.reply(messages)
            found = clean(reply)
            return found, _failed(checks(found))

        return self._kept(role, clip, key, model.model, lambda: self._tried(role, clip, text, reply_of))

    def _tried(
        self, role: CaptionRole, clip: _ClipAsked, text: str, reply_of: Callable[[Sequence[Message]], tuple[str, str]]
    ) -> tuple[str, str]:
        """A role's text, and why it is none."""
        pictures = clip.material.pictures if role == "picture" else ()
        sound = clip.material.wave if role in ("speech", "sound") else None
        if role in ("speech", "sound") and sound is None:
            return "", ""
        messages = self._rules.messages(role, text, pictures, sound)
        failed = ""
        for _ in range(ATTEMPTS):
            try:
                found, failed = reply_of(messages)
            except CutReplyError:
                found, failed = "...", "it did not come to its end: it must be shorter"
            if not failed:
                return found, ""
            messages = self._rules.retry_messages(messages, found or "...", [failed])
        return "", f"the model's last reply failed its checks: {failed}"

    def _transcript(self, clip: _ClipAsked, recogniser: Recogniser) -> str:
        def heard() -> tuple[str, str]:
            samples = clip.material.samples
            if samples is None:
                return "", ""
            failed = ""
            for _ in range(ATTEMPTS):
                with self._turn:
                    text = recogniser.transcribe(samples)
                failed = flaw(text) or check_loops(text).reason
                if not failed:
                    return text, ""
            return "", f"the transcript failed its checks: {failed}"

        key = row_key(clip.id, "transcript", recogniser.name, clip.edited)
        return self._kept("transcript", clip, key, recogniser.name, heard)

    def _kept(
        self, role: CaptionRole, clip: _ClipAsked, key: str, model: str, ask: Callable[[], tuple[str, str]]
    ) -> str:
        """What the folder has of a key, else what `ask` gives: a text, or why there is none."""
        row = self._store.get(key)
        if row is None or row.get("passing"):
            if self._silent[role] >= MOST_SILENT:
                raise _NoCaptionError(f"{role}: not asked any more: {self._last[role]}", passing=True)
            kept = {"key": key, "clip": clip.id, "role": role, "model": model, "rules": self._rules.version}
            try:
                text, reason = ask()
            except MovaError as error:
                self._silent[role] += isinstance(error, ChatError) or role == "transcript"
                self._last[role] = str(error)
                self._store.put({**kept, "text": "", "reason": str(error), "passing": True})
                raise _NoCaptionError(f"{role}: {error}", passing=True) from None
            self._silent[role] = 0
            row = {**kept, "text": text, "reason": reason, "passing": False}
            self._store.put(row)
        if row["reason"]:
            raise _NoCaptionError(f"{role}: {row['reason']}")
        clip.parts[role] = row["text"]
        return row["text"]


def open_models(settings: CaptionSettings) -> tuple[dict[CaptionRole, ChatModel], Recogniser | None]:
    """The models of all roles but the transcript's, and the one of that, if it is asked for. No server is asked yet.
    MovaError as of `ClipCaptioner`.
    """
    models: dict[CaptionRole, ChatModel] = {
        role: ChatEndpoint(_chat_config(settings, role)) for role in settings.roles if role != "transcript"
    }
    return models, _open_recogniser(settings)


def _chat_config(settings: CaptionSettings, role: CaptionRole) -> EnhanceConfig:
    endpoint = settings.endpoint(role)
    return EnhanceConfig(
        backend="endpoint",
        url=endpoint.url,
        model=endpoint.model,
        key_variable=settings.key_variable,
        images=role == "picture",
        temperature=settings.temperature,
        seed=settings.seed,
        most_tokens=settings.most_tokens,
        timeout=settings.timeout,
    )


def _open_recogniser(settings: CaptionSettings) -> Recogniser | None:
    if "transcript" not in settings.roles:
        return None
    if settings.whisper is not None:
        return LocalWhisper(settings.whisper)
    endpoint = settings.endpoint("transcript")
    return Endpoint(
        EndpointOptions(endpoint.url, endpoint.model, key_variable=settings.key_variable, timeout=settings.timeout)
    )


def check_caption(plain: str, text: str, rules: CaptionRules) -> list[PromptCheck]:
    """Checks of a caption against its parts put together in plain code: what is said stands there to the letter."""
    try:
        loops = check_loops(outside(text))
    except UnclearSpeechError:
        loops = check_loops(text)
    return [*check_reply(plain, text, rules.form, None), check_told(plain, text, rules.told("merge")), loops]


def _failed(checks: Sequence[PromptCheck]) -> str:
    return "; ".join(check.reason for check in checks if check.passed is False)
