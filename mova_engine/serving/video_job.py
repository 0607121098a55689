"""What a video job is: its settings, which the API has validated, and its state as the store has it."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mova_engine.config.model import ClipConfig
from mova_engine.config.sample import SampleConfig
from mova_engine.errors import MovaError, suggest

Status = Literal["queued", "in_progress", "completed", "failed"]
Mode = Literal["generate", "edit", "extension"]
Enhance = Literal["none", "endpoint", "local"]
# The states that clients of OpenAI's protocol know; they stop polling at any other word.
STATUSES: tuple[Status, ...] = ("queued", "in_progress", "completed", "failed")
ENDED: tuple[Status, ...] = ("completed", "failed")
# The owner of jobs where there are no keys.
LOCAL = "local"

# Settings of a job that are `mova sample`'s own, under the same names.
_OF_SAMPLING = (
    "steps", "solver", "cache", "guidance", "text_scale", "bridge_scale", "audio_text_scale", "audio_bridge_scale",
    "guide_from", "guide_until", "guidance_rescale",
)  # fmt: skip

# Codes of failed jobs, which clients see.
CANCELLED = "cancelled"
WORKER_LOST = "worker_lost"
DISK_FULL = "disk_full"
BAD_REQUEST = "bad_request"
OUT_OF_MEMORY = "out_of_memory"
EXPIRED = "expired"
INTERNAL = "internal_error"
ERROR_CODES = (CANCELLED, WORKER_LOST, DISK_FULL, BAD_REQUEST, OUT_OF_MEMORY, EXPIRED, INTERNAL)


def new_id() -> str:
    """A job's id, which cannot be guessed: "video_" and 24 hexadecimal digits."""
    return f"video_{secrets.token_hex(12)}"


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How a clip is made, all of it as validated values: no paths of clients.

    Names are those of `SampleSettings`, `Guidance` and `ClipSettings`. None: the model's own. seconds, size: as the
    client asked for them. cache: as `mova sample --cache`. adapters: strengths by registered name. first_frame,
    last_frame: whether the job's folder has these pictures. deadline_s: seconds from the request within which the
    client wants the clip; it moves the job forward in the queue. edit_of: in mode "edit", what is made anew.
    window: in mode "edit", its begin and end in seconds; None: the whole clip.
    """

    prompt: str
    enhanced_prompt: str | None = None
    negative_prompt: str = ""
    seed: int = 0
    width: int
    height: int
    frames: int
    fps: float
    seconds: str
    size: str
    steps: int | None = None
    solver: str | None = None
    guidance: str | None = None
    text_scale: float | None = None
    bridge_scale: float | None = None
    audio_text_scale: float | None = None
    audio_bridge_scale: float | None = None
    guide_from: float | None = None
    guide_until: float | None = None
    guidance_rescale: float | None = None
    cache: str = "none"
    adapters: Mapping[str, float] = field(default_factory=dict[str, float])
    mode: Mode = "generate"
    edit_of: Literal["both", "video", "audio"] = "both"
    window: tuple[float, float] | None = None
    first_frame: bool = False
    last_frame: bool = False
    deadline_s: float | None = None
    enhance: Enhance = "none"

    def to_json(self) -> str:
        """The settings as JSON, keys sorted: equal settings are equal texts."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "VideoSettings":
        """The settings that `to_json` wrote. MovaError for unknown names."""
        found: dict[str, Any] = json.loads(text)
        known = [each.name for each in fields(cls)]
        for name in found:
            if name not in known:
                raise MovaError(f"unknown setting '{name}' of a video job.{suggest(name, known)}")
        if found.get("window") is not None:
            found["window"] = tuple(found["window"])
        return cls(**found)

    @property
    def words(self) -> str:
        """The prompt that the model gets."""
        return self.enhanced_prompt or self.prompt

    @property
    def video_tokens(self) -> int:
        """Tokens of the video tower in the clip."""
        return ClipConfig(frames=self.frames, height=self.height, width=self.width).video_tokens

    def sample_config(self, checkpoint: Path, **more: Any) -> SampleConfig:
        """The settings as `mova sample` has them, whose rules hold here too, and `more` of them. Raises MovaError for
        what has no effect.
        """
        own: dict[str, Any] = {name: getattr(self, name) for name in _OF_SAMPLING}
        return SampleConfig(
            checkpoint=checkpoint, prompt=self.words, negative_prompt=self.negative_prompt or None, **own, **more
        )

    @property
    def batch_key(self) -> str:
        """Jobs with equal keys can be made in one batch: equal but for the prompt, seed, pictures and adapters. Empty:
        the job is made alone.
        """
        if self.mode != "generate" or self.last_frame or self.cache.startswith("adaptive") or self.enhance != "none":
            return ""
        same = replace(
            self,
            prompt="",
            enhanced_prompt=None,
            seed=0,
            seconds="",
            size="",
            adapters={},
            first_frame=False,
            deadline_s=None,
        )
        return same.to_json()


@dataclass(frozen=True, kw_only=True)
class VideoJob:
    """A job as the store has it. Times are whole seconds since 1970.

    owner: name of the key that made it, LOCAL without keys. progress: 0 to 100, never less than before. model: name of
    the checkpoint. predicted_s: seconds of work that were predicted when the job came. queue_position: 0 for the next
    one; None: it does not wait. attempts: how often a worker began it. facts: what was made, said by the worker.
    version: rises with each change of any job.
    """

    id: str
    owner: str = LOCAL
    status: Status = "queued"
    progress: int = 0
    created_at: int = 0
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    settings: VideoSettings
    stage: str = ""
    step: int = 0
    steps: int = 0
    eta_s: float | None = None
    predicted_s: float | None = None
    queue_position: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    remixed_from: str | None = None
    worker: str | None = None
    attempts: int = 0
    cancel_asked: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to the job."""
        return self.status in ENDED
