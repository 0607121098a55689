"""How a user names an adapter: `FILE`, `FILE:high`, `FILE:0.8`, `FILE:low:0.8`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mova_engine.errors import MovaError, suggest

# What a user calls the parts of the model: the first video expert takes the steps of high noise.
PARTS: Mapping[str, tuple[str, ...]] = {
    "high": ("video_dit",),
    "low": ("video_dit_2",),
    "both": ("video_dit", "video_dit_2"),
    "audio": ("audio_dit",),
    "bridge": ("dual_tower_bridge",),
}


# One number for all that an adapter changes, or one for each of PARTS, others being 0.
Strength = float | Mapping[str, float]


def strength_in(strength: Strength, component: str) -> float:
    """The strength in one component of the model."""
    if not isinstance(strength, Mapping):
        return float(strength)
    return float(next((x for part, x in strength.items() if component in PARTS[part]), 0.0))


def check_strength(name: str, strength: Strength) -> None:
    """MovaError for a strength of the adapter `name` that is not finite, and for an unknown part."""
    values = strength.items() if isinstance(strength, Mapping) else [("", strength)]
    for part, value in values:
        if part and part not in PARTS:
            raise MovaError(
                f"the strength of '{name}': unknown part '{part}'.{suggest(part, PARTS)} Known: {', '.join(PARTS)}"
            )
        if not math.isfinite(value):
            raise MovaError(f"the strength of '{name}' must be a finite number, got {value}")


class AdapterSpec(NamedTuple):
    """An adapter to use. path: a file or folder of any dialect, or a LoRA run. part: of PARTS, what it adapts, where
    the file does not say it. strength: 0 leaves the model as it is, 1 is the whole adapter. alpha: not the file's.
    """

    path: Path
    part: str | None = None
    strength: float = 1.0
    alpha: float | None = None


def parse_adapter(text: str, alpha: float | None = None) -> AdapterSpec:
    """An adapter as typed. MovaError for a strength that is not finite, and for an empty name."""
    path, part, strength = text, None, None
    while ":" in path:
        rest, _, last = path.rpartition(":")
        if part is None and last in PARTS:
            part = last
        elif strength is None and _number(last) is not None:
            strength = _number(last)
        else:
            break
        path = rest
    if not path.strip():
        raise MovaError(f"'{text}' names no adapter: FILE, FILE:PART or FILE:STRENGTH are wanted")
    if strength is not None and not math.isfinite(strength):
        raise MovaError(f"{text}: a strength must be a finite number")
    return AdapterSpec(Path(path), part, 1.0 if strength is None else strength, alpha)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
