"""What curation has readers do to a clip's sound: move it to where the pictures have it, bring it to one loudness."""

from dataclasses import dataclass

from mova_engine.config.limits import check, check_least


@dataclass(frozen=True, kw_only=True)
class SoundCorrection:
    """Corrections of accepted clips' sound."""

    shift: str = ""
    """By how many seconds the sound is early, over a clip's columns: "lse_offset / 25". It is moved later by so much;
    empty: it stays."""
    shift_where: str = "True"
    """Condition that must hold for it, as that the measure is sure of the offset: "lse_c >= 4.5"."""
    least_shift: float = 0.02
    """Seconds; less is left as it is."""
    most_shift: float = 0.5
    """Seconds; more is no offset that can be trusted, and left as it is."""
    lufs: float | None = None
    """Integrated loudness that clips are brought to; default: they keep theirs."""
    most_gain: float = 12.0
    """Decibels by which a clip is made louder or softer at most."""

    def __post_init__(self) -> None:
        check_least(self, "sound.", least_shift=0, most_shift=0, most_gain=0)
        check(self.lufs is None or -70 <= self.lufs <= 0, f"sound.lufs must lie between -70 and 0, got {self.lufs}")
