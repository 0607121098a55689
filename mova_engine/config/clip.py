"""The size of a run's clips. It belongs to the run: a model takes clips of any size, and a model's own is a default."""

from dataclasses import asdict, dataclass, replace

from mova_engine.config.model import ClipConfig
from mova_engine.errors import MovaError

# Pixels of a latent's patch: 8 to a latent, 2 latents to a patch.
_MULTIPLE = 16


@dataclass(frozen=True)
class ClipSettings:
    """A clip's size; what is not stated is the model's own."""

    frames: int | None = None
    """Frames, 4n+1."""
    height: int | None = None
    """Pixels, a multiple of 16."""
    width: int | None = None
    """Pixels, a multiple of 16."""
    fps: float | None = None
    """Frames a second."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and (value <= 0 or value % _MULTIPLE):
                raise MovaError(f"clip.{name} must be a positive multiple of {_MULTIPLE}, got {value}")
        # Whether a number of frames and a rate are those that any model takes does not depend on what is left out.
        self.over(ClipConfig(frames=1, height=_MULTIPLE, width=_MULTIPLE))

    def over(self, clip: ClipConfig) -> ClipConfig:
        """The clip `clip` with what is stated here in place of its own."""
        return replace(clip, **{name: value for name, value in asdict(self).items() if value is not None})

    @property
    def states_picture(self) -> bool:
        """Whether height and width are stated, the sizes in which the released models differ."""
        return self.height is not None and self.width is not None


def clip_words(clip: ClipConfig) -> str:
    """A clip's size as errors and notes give it: "193 frames of 352x640 at 24 fps"."""
    return f"{clip.frames} frames of {clip.height}x{clip.width} at {clip.fps:g} fps"
