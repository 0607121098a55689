"""How captions of clips come about: which models see, hear and write, and where they are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from mova_engine.config.command import section
from mova_engine.config.limits import check, check_least, check_seed
from mova_engine.errors import MovaError

# What a model is asked for: what is seen, what is said, how it is said, what else is heard, and one caption of these.
CaptionRole = Literal["picture", "transcript", "speech", "sound", "merge"]
ROLES: tuple[CaptionRole, ...] = get_args(CaptionRole)


@dataclass(frozen=True, kw_only=True)
class RoleEndpoint:
    """A server of OpenAI's protocol that one role asks."""

    url: str = ""
    """Its address, up to and with /v1; default: that of all roles."""
    model: str = ""
    """The name of its model; default: that of all roles."""


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """What writes captions of accepted clips."""

    url: str = ""
    """Address of a server of OpenAI's protocol, up to and with /v1, to which PICTURES AND SOUND ARE SENT; default:
    there are no captions.
    """
    model: str = ""
    """The name of its model."""
    roles: tuple[CaptionRole, ...] = ("picture", "transcript", "speech", "sound", "merge")
    """What models are asked for: what is seen, the words that are said, how they are said, what else is heard, and to
    make one caption of all that. Without merge a fixed form puts the parts together.
    """
    picture: Annotated[RoleEndpoint, section("Captions")] = field(default_factory=RoleEndpoint)
    transcript: Annotated[RoleEndpoint, section("Captions")] = field(default_factory=RoleEndpoint)
    speech: Annotated[RoleEndpoint, section("Captions")] = field(default_factory=RoleEndpoint)
    sound: Annotated[RoleEndpoint, section("Captions")] = field(default_factory=RoleEndpoint)
    merge: Annotated[RoleEndpoint, section("Captions")] = field(default_factory=RoleEndpoint)
    whisper: Path | None = None
    """Folder of a model of faster-whisper, which hears the words on this machine instead of an endpoint."""
    key_variable: str = ""
    """Environment variable that holds the endpoints' key."""
    pictures: int = 4
    """Pictures of a clip that a model is shown."""
    side: int = 640
    """Pixels of their longer side, at most."""
    at_once: int = 8
    """Clips that are asked about at the same time."""
    timeout: float = 120.0
    """Seconds that a reply may take, with all that is tried again."""
    most_tokens: int = 1024
    """Tokens of a reply; a longer one is cut, and then not used."""
    temperature: float = 0.0
    """How freely words are chosen; 0: the likeliest."""
    seed: int = 0
    """Of the choice of words, where the temperature is above 0."""

    def __post_init__(self) -> None:
        check_least(self, "captions.", pictures=1, side=64, at_once=1, most_tokens=16, temperature=0.0)
        check(self.temperature <= 2, f"captions.temperature must be at most 2, got {self.temperature}")
        check(0 < self.timeout <= 3600, f"captions.timeout must be above 0 and at most an hour, got {self.timeout}")
        check_seed(self.seed)
        if not self.wanted:
            return
        for role in self.asked:
            endpoint = self.endpoint(role)
            if not endpoint.url.startswith(("http://", "https://")):
                raise MovaError(
                    f"captions.{role}.url (or captions.url) must begin with http:// or https:// and end with /v1, got "
                    f"'{endpoint.url}'"
                )
            check(bool(endpoint.model), f"name the model: captions.{role}.model, or captions.model for all roles")
        for role in ("picture", "sound"):
            check(role in self.roles, f"a caption tells what is seen and heard: captions.roles lacks {role}")

    @property
    def wanted(self) -> bool:
        """Whether there are captions at all."""
        return bool(self.url) or any(self._own(role).url for role in ROLES)

    @property
    def asked(self) -> tuple[CaptionRole, ...]:
        """The roles that ask an endpoint."""
        return tuple(role for role in self.roles if role != "transcript" or self.whisper is None)

    def endpoint(self, role: CaptionRole) -> RoleEndpoint:
        """Whom a role asks."""
        own = self._own(role)
        return RoleEndpoint(url=own.url or self.url, model=own.model or self.model)

    def _own(self, role: CaptionRole) -> RoleEndpoint:
        return {
            "picture": self.picture,
            "transcript": self.transcript,
            "speech": self.speech,
            "sound": self.sound,
            "merge": self.merge,
        }[role]
