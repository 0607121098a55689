"""A language model behind OpenAI's chat/completions: vLLM, SGLang, llama.cpp, Ollama, DashScope and others speak it.

Errors say what went wrong, never what the server has sent: its body may hold the prompt, or what it was told to leak.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mova_engine import __version__
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.errors import MovaError, require_package
from mova_engine.files.byte_ranges import PASSING, without_query
from mova_engine.inference.prompts.chat import ChatError, CutReplyError, Message

# Tries of one request while a server is busy or not there, and seconds before the second, which double.
TRIES, FIRST_WAIT_S = 3, 0.5
# The largest body that is read.
MOST_BYTES = 1 << 20
# How a JPEG file begins.
_JPEG = b"\xff\xd8\xff"


class _Passing(Exception):
    """A try that failed in a way that may pass. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float) -> None:
        super().__init__(reason)
        self.reason, self.after = reason, after


class ChatEndpoint:
    """POST {url}/chat/completions. The key is read from the environment and told nowhere; proxies of the environment
    are not used, redirections are not followed.

    The timeout is for a whole reply: connecting, headers that come byte by byte, tries, waits between them. Raises
    MovaError without httpx, and where the named variable is not set.
    """

    backend = "endpoint"

    def __init__(self, config: EnhanceConfig, wait: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        require_package("httpx", "An endpoint")
        import httpx

        # Reading all authorities takes longer than a small request.
        self._certificates = httpx.create_ssl_context(trust_env=False)
        self.model, self.sees_pictures = config.model, config.images
        self._address = f"{config.url.rstrip('/')}/chat/completions"
        self._place, self._config, self._wait = without_query(self._address), config, wait
        self.identity = json.dumps([self._place, config.temperature, config.seed, config.most_tokens])
        self._headers = {"User-Agent": f"mova-engine/{__version__}", "Accept-Encoding": "identity"}
        if config.key_variable:
            key = os.environ.get(config.key_variable, "")
            if not key or not key.isascii() or not key.isprintable():
                raise MovaError(
                    f"the environment variable {config.key_variable} holds no key: "
                    f"{'it has characters that no key has' if key else 'it is not set'}"
                )
            self._headers["Authorization"] = f"Bearer {key}"

    def ready(self) -> AbstractContextManager[None]:
        """As ChatModel: there is nothing to load."""
        return nullcontext()

    def reply(self, messages: Sequence[Message]) -> str:
        """As ChatModel. Tries again while the server is busy, for as long as it asks for, within the time limit."""
        body = {
            "model": self.model,
            "messages": [_as_json(message) for message in messages],
            "temperature": self._config.temperature,
            "seed": self._config.seed,
            "max_tokens": self._config.most_tokens,
            "stream": False,
        }
        # In a thread of its own: who calls may run an event loop already.
        with ThreadPoolExecutor(1, "mova-chat") as thread:
            found = thread.submit(lambda: asyncio.run(self._within_time(json.dumps(body).encode()))).result()
        return _text_of(found, self._place)

    async def _within_time(self, body: bytes) -> bytes:
        limit = self._config.timeout
        try:
            return await asyncio.wait_for(self._tried(body, time.monotonic() + limit), limit)
        except TimeoutError:
            raise ChatError(f"{self._place} gave no complete reply in {limit:g} s") from None

    async def _tried(self, body: bytes, until: float) -> bytes:
        import httpx

        pause, reason = FIRST_WAIT_S, ""
        # Without limits of its own: the whole has one.
        async with httpx.AsyncClient(
            verify=self._certificates, trust_env=False, timeout=None, headers=self._headers
        ) as client:
            for tried in range(TRIES):
                try:
                    return await self._posted(client, body)
                except _Passing as error:
                    reason, wanted = error.reason, max(pause, error.after)
                except httpx.TransportError as error:
                    reason, wanted = f"no connection ({type(error).__name__})", pause
                except (httpx.InvalidURL, httpx.HTTPError, ValueError) as error:
                    raise ChatError(f"{self._place} cannot be asked ({type(error).__name__})") from None
                if tried + 1 == TRIES:
                    break
                if time.monotonic() + wanted >= until:
                    raise ChatError(f"{self._place}: {reason}, and asks to wait {wanted:g} s, which is too long")
                await self._wait(wanted)
                pause *= 2
        raise ChatError(f"{self._place}: {reason}, {TRIES} times")

    async def _posted(self, client: Any, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", self._address, content=body, headers=headers) as reply:
            if reply.status_code in PASSING:
                raise _Passing(f"status {reply.status_code}", _seconds(reply.headers.get("retry-after", "")))
            if reply.status_code != 200:
                raise ChatError(f"{self._place} refused the request with status {reply.status_code}")
            if reply.headers.get("content-encoding", "identity") != "identity":
                raise ChatError(f"{self._place} sends its reply compressed, which was not asked for")
            data = bytearray()
            async for chunk in reply.aiter_raw():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise ChatError(f"{self._place} sends more than {MOST_BYTES} bytes")
            return bytes(data)


def _as_json(message: Message) -> dict[str, Any]:
    if not message.pictures and message.sound is None:
        return {"role": message.role, "content": message.text}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.text}]
    for picture in message.pictures:
        kind = "jpeg" if picture.startswith(_JPEG) else "png"
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{_base64(picture)}"}})
    if message.sound is not None:
        parts.append({"type": "input_audio", "input_audio": {"data": _base64(message.sound), "format": "wav"}})
    return {"role": message.role, "content": parts}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text_of(data: bytes, place: str) -> str:
    """The text of a completion's body. ChatError for one that is no completion, or not complete."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ChatError(f"{place} replied with what is no JSON") from None
    choices = found.get("choices") if isinstance(found, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(choice, Mapping) or not isinstance(text, str):
        raise ChatError(f"{place} replied with JSON that is no chat completion with a text")
    reason = choice.get("finish_reason")
    if reason != "stop":
        known = reason if reason in ("length", "content_filter", "tool_calls", "function_call") else "unknown"
        raise CutReplyError(f"{place} did not end its reply (finish_reason {known})")
    return text


def _seconds(text: str) -> float:
    """A Retry-After header; what is no number of seconds counts as none."""
    return float(text) if text.isdecimal() and len(text) < 10 else 0.0
