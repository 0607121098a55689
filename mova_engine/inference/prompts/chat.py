"""What a language model is asked, and what answers: the interface of endpoints and local models."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from mova_engine.errors import MovaError


class ChatError(MovaError):
    """A model that gave no complete reply. The message says why; it never repeats a reply's body or a key."""


class CutReplyError(ChatError):
    """A reply that does not come to its end, such as one that is longer than it may be."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat. pictures: PNG or JPEG files' bytes, in their order; sound: a WAVE file's, with it."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[bytes, ...] = ()
    sound: bytes | None = None


class ChatModel(Protocol):
    """A language model. backend: "endpoint" or "local". model: its name, told in metadata. identity: all that decides
    its replies beside the messages, for the cache. sees_pictures: whether messages may have pictures.
    """

    backend: str
    model: str
    identity: str
    sees_pictures: bool

    def ready(self) -> AbstractContextManager[None]:
        """A block within which several replies cost the model's loading once."""
        ...

    def reply(self, messages: Sequence[Message]) -> str:
        """The model's complete reply. Raises ChatError where there is none."""
        ...
