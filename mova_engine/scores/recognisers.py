"""Recognisers of speech: an endpoint of OpenAI's protocol, or faster-whisper with a model on this machine.

Both take mono sound at 16 kHz and give one text, speakers tagged as "[S01] words [S02] words" where they tell them.
"""

import io
import os
import time
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError, require_package
from mova_engine.scores.speaker_errors import recognised_text

Samples = NDArray[np.int16]
RATE = 16000
# Tries of one request, seconds before the second one, which double or are what the server asks for, and the most.
TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
# Characters of a refusal that are told.
_TOLD = 200


class Recogniser(Protocol):
    """name: what the transcripts come from, for their file."""

    name: str

    def transcribe(self, sound: Samples) -> str:
        """The text of mono samples int16 [n] at 16 kHz. Raises MovaError where none can be had."""
        ...


@dataclass(frozen=True)
class EndpointOptions:
    """url: of the server, up to and with /v1; key_variable: the environment variable that holds its key."""

    url: str
    model: str
    prompt: str = ""
    key_variable: str = ""
    timeout: float = 180.0


class Endpoint:
    """POST {url}/audio/transcriptions. The key is read from the environment and told nowhere.

    Raises MovaError without httpx, for a URL that is none, and where the named variable is not set.
    """

    def __init__(self, options: EndpointOptions, wait: Callable[[float], None] = time.sleep) -> None:
        require_package("httpx", "An endpoint")
        import httpx

        if not options.url.startswith(("http://", "https://")):
            raise MovaError(f"{options.url}: an endpoint begins with http:// or https:// and ends with /v1")
        headers = {}
        if options.key_variable:
            key = os.environ.get(options.key_variable, "")
            if not key:
                raise MovaError(f"the environment variable {options.key_variable} is not set; it holds the key")
            headers["Authorization"] = f"Bearer {key}"
        self.name = f"{options.model} at {options.url}"
        self._options, self._wait = options, wait
        self._client = httpx.Client(headers=headers, timeout=options.timeout)

    def transcribe(self, sound: Samples) -> str:
        """As Recogniser: tries again, with longer and longer waits, while the server is busy or silent."""
        import httpx

        address = f"{self._options.url.rstrip('/')}/audio/transcriptions"
        fields = {"model": self._options.model, "response_format": "json", "temperature": "0"}
        if self._options.prompt:
            fields["prompt"] = self._options.prompt
        reason, pause = "", FIRST_WAIT
        for tried in range(TRIES):
            if tried:
                self._wait(min(pause, LONGEST_WAIT))
                pause = 2 * min(pause, LONGEST_WAIT)
            try:
                files = {"file": ("sound.wav", _wave(sound), "audio/wav")}
                reply = self._client.post(address, data=fields, files=files)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                continue
            if reply.status_code == 200:
                return _text_of(reply)
            reason = f"status {reply.status_code}: {' '.join(reply.text.split())[:_TOLD]}"
            if reply.status_code not in _AGAIN:
                raise MovaError(f"{address} refused the sound: {reason}")
            pause = max(pause, _seconds(reply.headers.get("retry-after", "")))
        raise MovaError(f"{address} gave no transcript in {TRIES} tries: {reason}")


def _text_of(reply: Any) -> str:
    try:
        found = reply.json()
    except ValueError:
        raise MovaError(f"the endpoint's reply is no JSON: {' '.join(reply.text.split())[:_TOLD]}") from None
    if not isinstance(found, Mapping):
        raise MovaError("the endpoint's reply is no JSON object")
    return tagged_text(found)


def tagged_text(reply: Mapping[str, Any]) -> str:
    """The text of a reply: its segments with their speakers where they have some, else its "text".

    Also of MOSS Transcribe Diarize, whose segments lie deeper. Raises MovaError for a reply that has neither.
    """
    if "asr_transcription_result" in reply:
        return recognised_text(reply)
    segments = reply.get("segments")
    if isinstance(segments, list) and segments and all(isinstance(x, Mapping) and x.get("speaker") for x in segments):
        tags: dict[str, str] = {}
        parts = []
        for segment in segments:
            tag = tags.setdefault(str(segment["speaker"]), f"[S{len(tags) + 1:02d}]")
            parts.append(f"{tag} {str(segment.get('text', '')).strip()}")
        return " ".join(parts)
    text = reply.get("text")
    if not isinstance(text, str):
        raise MovaError(f"the endpoint's reply has no text, but {', '.join(map(str, reply)) or 'nothing'}")
    return text.strip()


class LocalWhisper:
    """faster-whisper on the CPU with a model's folder, which the user has: nothing is fetched. It tells no speakers.

    Raises MovaError without the package, and for a folder that holds no model.
    """

    def __init__(self, folder: Path, language: str = "", threads: int = 1) -> None:
        require_package("faster_whisper", "A local model")
        if not (folder / "model.bin").is_file():
            raise MovaError(f"{folder}: holds no model of faster-whisper (model.bin, config.json, tokenizer.json)")
        from faster_whisper import WhisperModel

        self.name, self._language = f"faster-whisper {folder.name}", language or None
        try:
            self._model = WhisperModel(
                str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise MovaError(f"{folder}: cannot be opened by faster-whisper: {error}") from None

    def transcribe(self, sound: Samples) -> str:
        """As Recogniser, without tags. The same sound gives the same text: no temperature is tried but 0."""
        segments, _ = self._model.transcribe(
            sound.astype(np.float32) / 32768,
            language=self._language,
            temperature=0.0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


def _wave(sound: Samples) -> bytes:
    """Mono samples as a WAVE file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(np.ascontiguousarray(sound, "<i2").tobytes())
    return file.getvalue()


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0
