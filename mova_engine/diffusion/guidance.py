"""Classifier-free guidance (Ho & Salimans, 2022) over two conditions: the text T and the bridge B.

The general form takes three evaluations of the model:
    v = v(0,0) + s_B * (v(0,B) - v(0,0)) + s_T * (v(T,B) - v(0,B))
Empty text is the encoder's output for an empty string; empty B is no bridge layer in either direction. Each modality
may have scales of its own. Guidance can be limited to a part of the steps (Kynkaanniemi et al., 2024), and its result
rescaled to the standard deviation of v(T,B) (Lin et al., 2024, section 3.4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from mova_engine.config.model import GUIDANCE_FORMS
from mova_engine.errors import MovaError, suggest

Velocities = tuple[Tensor, Tensor]
Evaluate = Callable[[bool, bool], Velocities]
Branch = tuple[bool, bool]
_FULL, _BRIDGED, _NEITHER = (True, True), (False, True), (False, False)
_BRANCHES = {
    "none": (_FULL,),
    "text": (_FULL, _BRIDGED),
    "text_bridge": (_FULL, _NEITHER),
    # Of two ranks that take turns, one has both that can share a forward.
    "dual": (_FULL, _NEITHER, _BRIDGED),
}


@dataclass(frozen=True)
class Guidance:
    """How to combine evaluations.

    none: v(T,B). text: s_B = 1, two evaluations. text_bridge: s_B = s_T = text_scale, two evaluations. dual: all three.
    audio_text_scale, audio_bridge_scale: of the audio's velocity; None: as the video's. rescale: share, 0 to 1, of the
    rescaled velocity in the result. begin, end: shares of the steps between which there is guidance; v(T,B) alone, one
    evaluation, serves before and after.
    """

    form: str = "text"
    text_scale: float = 5.0
    bridge_scale: float = 1.0
    audio_text_scale: float | None = None
    audio_bridge_scale: float | None = None
    rescale: float = 0.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in GUIDANCE_FORMS:
            known = ", ".join(GUIDANCE_FORMS)
            raise MovaError(f"unknown guidance '{self.form}'.{suggest(self.form, GUIDANCE_FORMS)} Known: {known}")
        for name in ("text_scale", "bridge_scale", "audio_text_scale", "audio_bridge_scale"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise MovaError(f"{name} must be a finite number, got {value}")
        if not 0 <= self.rescale <= 1:
            raise MovaError(f"guidance rescale must lie between 0 and 1, got {self.rescale}")
        if not 0 <= self.begin < self.end <= 1:
            raise MovaError(
                "guidance must begin and end at shares of the steps, 0 <= begin < end <= 1, got "
                f"{self.begin} and {self.end}"
            )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What is evaluated in each step: (with text, with bridge)."""
        return _BRANCHES[self.form]

    @property
    def evaluations(self) -> int:
        """Model evaluations per step."""
        return len(self.branches)

    def at(self, share: float) -> "Guidance":
        """The guidance after a share of the steps."""
        return self if self.begin <= share < self.end else replace(self, form="none")

    def combine(self, evaluate: Evaluate) -> Velocities:
        """Guided (video, audio) velocities in float32; `evaluate(with_text, with_bridge)` runs the model once."""
        found = {branch: _float(evaluate(*branch)) for branch in self.branches}
        text = self.text_scale if self.audio_text_scale is None else self.audio_text_scale
        bridge = self.bridge_scale if self.audio_bridge_scale is None else self.audio_bridge_scale
        return (
            self._combined({branch: pair[0] for branch, pair in found.items()}, self.text_scale, self.bridge_scale),
            self._combined({branch: pair[1] for branch, pair in found.items()}, text, bridge),
        )

    def _combined(self, found: dict[Branch, Tensor], text_scale: float, bridge_scale: float) -> Tensor:
        """The guided velocity of one modality."""
        full = found[_FULL]
        if self.form == "none":
            return full
        if self.form == "text":
            guided = _extrapolate(found[_BRIDGED], full, text_scale)
        elif self.form == "text_bridge":
            guided = _extrapolate(found[_NEITHER], full, text_scale)
        else:
            base = _extrapolate(found[_NEITHER], found[_BRIDGED], bridge_scale)
            guided = base + text_scale * (full - found[_BRIDGED])
        return _rescaled(guided, full, self.rescale) if self.rescale else guided


def _float(velocities: Velocities) -> Velocities:
    return velocities[0].float(), velocities[1].float()


def _extrapolate(start: Tensor, end: Tensor, scale: float) -> Tensor:
    return start + scale * (end - start)


def _rescaled(guided: Tensor, full: Tensor, share: float) -> Tensor:
    """Between `guided` and the same with each clip's standard deviation of `full`."""
    axes = tuple(range(1, full.ndim))
    factor = full.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (share * factor + (1 - share))
