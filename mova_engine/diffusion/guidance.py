"""Classifier-free guidance (Ho & Salimans, 2022) over two conditions: the text T and the bridge B.

The general form takes three evaluations of the model:
    v = v(0,0) + s_B * (v(0,B) - v(0,0)) + s_T * (v(T,B) - v(0,B))
Empty text is the encoder's output for an empty string; empty B is no bridge layer in either direction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

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
    """

    form: str = "text"
    text_scale: float = 5.0
    bridge_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in GUIDANCE_FORMS:
            known = ", ".join(GUIDANCE_FORMS)
            raise MovaError(f"unknown guidance '{self.form}'.{suggest(self.form, GUIDANCE_FORMS)} Known: {known}")
        for name in ("text_scale", "bridge_scale"):
            if not math.isfinite(getattr(self, name)):
                raise MovaError(f"{name} must be a finite number, got {getattr(self, name)}")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What is evaluated in each step: (with text, with bridge)."""
        return _BRANCHES[self.form]

    @property
    def evaluations(self) -> int:
        """Model evaluations per step."""
        return len(self.branches)

    def combine(self, evaluate: Evaluate) -> Velocities:
        """Guided (video, audio) velocities in float32; `evaluate(with_text, with_bridge)` runs the model once."""
        full = _float(evaluate(True, True))
        if self.form == "none":
            return full
        if self.form == "text":
            return _extrapolate(_float(evaluate(False, True)), full, self.text_scale)
        neither = _float(evaluate(False, False))
        if self.form == "text_bridge":
            return _extrapolate(neither, full, self.text_scale)
        bridged = _float(evaluate(False, True))
        base = _extrapolate(neither, bridged, self.bridge_scale)
        video, audio = (b + self.text_scale * (f - w) for b, f, w in zip(base, full, bridged, strict=True))
        return video, audio


def _float(velocities: Velocities) -> Velocities:
    return velocities[0].float(), velocities[1].float()


def _extrapolate(start: Velocities, end: Velocities, scale: float) -> Velocities:
    video, audio = (s + scale * (e - s) for s, e in zip(start, end, strict=True))
    return video, audio
