"""How prompts are enhanced, as typed and validated settings; sampling, the command and the server share them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mova_engine.config.limits import check, check_least, check_seed
from mova_engine.errors import MovaError


@dataclass(frozen=True, kw_only=True)
class EnhanceConfig:
    """What rewrites prompts before clips are made from them."""

    backend: Literal["none", "endpoint", "local"] = "none"
    """What rewrites prompts: a server of OpenAI's protocol, to which PROMPTS AND FRAMES ARE SENT; a model in a folder
    on this machine; or nothing.
    """
    url: str = ""
    """Endpoint: its address, up to and with /v1."""
    model: str = ""
    """Endpoint: the name of its model. Local: a folder as transformers writes it, or a .gguf file."""
    key_variable: str = ""
    """Endpoint: environment variable that holds its key."""
    images: bool = False
    """Endpoint: its model takes pictures, so that first frames are described."""
    temperature: float = 0.0
    """How freely words are chosen; 0: the likeliest."""
    seed: int = 0
    """Of the choice of words, where the temperature is above 0."""
    most_tokens: int = 1024
    """Tokens of a reply; a longer one is cut, and then not used."""
    timeout: float = 120.0
    """Seconds that a reply may take, with all that is tried again."""
    cache: Path | None = None
    """Folder in which enhanced prompts are kept; default: they are not."""

    def __post_init__(self) -> None:
        check_least(self, "", temperature=0.0, most_tokens=16)
        check(self.temperature <= 2, f"temperature must be at most 2, got {self.temperature}")
        check(0 < self.timeout <= 3600, f"timeout must be above 0 and at most an hour, got {self.timeout}")
        check_seed(self.seed)
        if self.backend == "endpoint":
            self._check_endpoint()
        if self.backend == "local":
            check(bool(self.model), "backend local takes a model: a folder as transformers writes it, or a .gguf file")
        for name in ("url", "key_variable", "images"):
            useless = f"{name.replace('_', '-')} is for backend endpoint, got backend {self.backend}"
            check(self.backend == "endpoint" or not getattr(self, name), useless)
        check(self.backend != "none" or not self.model, "a model is for backends endpoint and local: name one of them")

    def _check_endpoint(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise MovaError(
                f"backend endpoint takes a url that begins with http:// or https:// and ends with /v1, got '{self.url}'"
            )
        check(bool(self.model), "backend endpoint takes a model: the name of one that the server has")


@dataclass(frozen=True)
class EnhanceMode:
    """The option that gives the backend of enhancement by one word."""

    enhance: Literal["none", "endpoint", "local"] | None = None
    """What rewrites prompts before clips are made: a server of OpenAI's protocol, to which PROMPTS AND FRAMES ARE SENT;
    a model in a folder on this machine; or nothing.
    """


# By the word, the settings that it stands for.
BACKENDS = {name: {"backend": name} for name in ("none", "endpoint", "local")}
