"""What is measured on a card: its parts in order of value, the units of each, and the seconds planned for them.

A *unit* is what is done, recorded and resumed as a whole. Seconds are plans, not measurements: they decide what still
fits a slice. No torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mova_engine.errors import MovaError, suggest
from mova_engine.ops import OPERATORS

# Seconds of a slice that are kept for its report and its end, and those that a process takes to start.
RESERVE, START = 12.0, 8.0
# A unit may take this many times its planned seconds, and at least so many, before it is ended.
PATIENCE, LEAST_LIMIT = 3.0, 90.0
# In a rehearsal, whose seconds are those of another device, it may take as many times more.
REHEARSAL_PATIENCE = 10.0

# Of a card like the H100. Attention is measured at six shapes, the rest at two or three.
_OPERATOR_SECONDS, _ATTENTION_SECONDS = 6.0, 40.0


@dataclass(frozen=True)
class CardUnit:
    """One unit of a part. seconds: planned on the card, its process's start not counted."""

    part: str
    name: str
    seconds: float

    @property
    def limit(self) -> float:
        """Seconds after which it is ended."""
        return max(LEAST_LIMIT, PATIENCE * self.seconds)


@dataclass(frozen=True)
class CardPart:
    """A part. target: "module:function" of what measures a unit: (context, unit's name) -> rows. seconds: of each unit.

    apart: in a process of its own, so that its peak of memory is its own and what was chosen before it is read.
    """

    name: str
    about: str
    target: str
    seconds: dict[str, float]
    apart: bool = False


# Triton kernels that have tiles to choose, the norms' first; merge_lse has none that matters.
_TILED = (
    *("norm_rows_fwd_kernel", "norm_rows_bwd_kernel", "rms_norm_rope_fwd_kernel", "rms_norm_rope_bwd_kernel"),
    *("rms_norm_fwd_kernel", "rms_norm_bwd_kernel", "gate_residual_fwd_kernel", "gate_residual_bwd_kernel"),
    *("bias_gelu_fwd_kernel", "bias_gelu_bwd_kernel", "quantize_rows_fwd_kernel"),
)


# Functions that have no row by row result at MOVA's shapes, or no such shape.
_UNTIMED = ("attention_backward", "merge_lse", "newton_schulz")


def _timed() -> dict[str, float]:
    """Operators that are timed at MOVA's shapes, and the seconds planned for each."""
    return {
        name: _ATTENTION_SECONDS if name.startswith("attention") else _OPERATOR_SECONDS
        for name, operator in OPERATORS.items()
        if operator.kind == "function" and name not in _UNTIMED
    }


_HERE = "mova_engine.bench.card"
PARTS: tuple[CardPart, ...] = (
    CardPart("doctor", "versions, drivers, memory, variables", f"{_HERE}.card_checks:examine_card", {"doctor": 10.0}),
    CardPart(
        "operator-tests",
        "every implementation's values and gradients, judged against float64",
        f"{_HERE}.card_checks:judge_operator",
        dict.fromkeys(OPERATORS, 6.0),
    ),
    CardPart(
        "parity",
        "recorded cases of the reference model; both towers forward and backward",
        f"{_HERE}.card_checks:reproduce",
        {"recorded cases": 15.0, "towers float32": 5.0, "towers bfloat16": 5.0},
    ),
    CardPart(
        "choice",
        "the fastest implementation of each operator on this card, written for later runs",
        f"{_HERE}.card_operators:choose_implementations",
        dict.fromkeys((name for name in OPERATORS if name != "adamw_8bit"), 5.0),
    ),
    CardPart(
        "tiles",
        "tiles of the Triton kernels, written for later runs",
        f"{_HERE}.card_operators:choose_tiles",
        dict.fromkeys(_TILED, 45.0),
    ),
    CardPart(
        "operators",
        "every implementation at MOVA's shapes, forward and backward",
        f"{_HERE}.card_operators:time_operator",
        _timed(),
        apart=True,
    ),
    CardPart(
        "fp8",
        "trained layers of a video block with fp8 products, beside bfloat16",
        f"{_HERE}.card_fp8:time_fp8_layer",
        dict.fromkeys(("attention", "up", "down"), 5.0),
        apart=True,
    ),
    CardPart("block", "one video block, beside the baseline", f"{_HERE}.card_steps:time_block", {"block": 25.0}),
    CardPart("bridge", "one bridge layer, beside the baseline", f"{_HERE}.card_steps:time_bridge", {"bridge": 15.0}),
    CardPart(
        "audio-block",
        "one audio block, beside the baseline",
        f"{_HERE}.card_steps:time_audio_block",
        {"audio-block": 8.0},
    ),
    CardPart(
        "stack",
        "all video blocks, forward and backward, gradients into one reused buffer",
        f"{_HERE}.card_steps:time_stack",
        {"stack": 80.0},
        apart=True,
    ),
    CardPart(
        "denoise",
        "one denoising step of two evaluations",
        f"{_HERE}.card_steps:time_denoise",
        {"denoise": 55.0},
        apart=True,
    ),
    CardPart(
        "lora",
        "one LoRA step: forward, backward, clipping, AdamW",
        f"{_HERE}.card_steps:time_lora",
        {"lora": 85.0},
        apart=True,
    ),
    CardPart(
        "streaming",
        "weights from the host: seconds of copies hidden and exposed",
        f"{_HERE}.card_steps:time_streaming",
        {"denoise": 45.0, "denoise, short clip": 15.0},
        apart=True,
    ),
)
PART_NAMES = tuple(part.name for part in PARTS)


@dataclass(frozen=True)
class CardSuite:
    """What is measured on a kind of card. hardware: its entry in `predict/hardware.toml`. minutes: device time in all.

    factor: how much longer than on an H100 a unit is planned to take. last: parts that come after all others.
    """

    name: str
    hardware: str
    minutes: float
    factor: float = 1.0
    last: tuple[str, ...] = field(default=())

    def units(self, only: Sequence[str] = ()) -> list[CardUnit]:
        """The units in order; only: of these parts. Raises MovaError for an unknown part."""
        for name in only:
            if name not in PART_NAMES:
                raise MovaError(f"unknown part '{name}'.{suggest(name, PART_NAMES)} Known: {', '.join(PART_NAMES)}")
        ordered = [part for part in PARTS if part.name not in self.last]
        ordered += [part for part in PARTS if part.name in self.last]
        return [
            CardUnit(part.name, name, seconds * self.factor)
            for part in ordered
            if not only or part.name in only
            for name, seconds in part.seconds.items()
        ]


SUITES: dict[str, CardSuite] = {
    suite.name: suite
    for suite in (
        CardSuite("h100", "h100-80gb", minutes=30),
        # Fifteen minutes do not hold these too: what is left of them when all else is done is theirs.
        CardSuite("h200", "h200", minutes=15, last=("fp8", "tiles")),
        CardSuite("4090", "rtx4090", minutes=90, factor=4.0, last=("tiles",)),
        CardSuite("910a2", "910a2", minutes=60, factor=2.5),
    )
}


def get_suite(name: str) -> CardSuite:
    """A suite by name. Raises MovaError for an unknown one."""
    if name not in SUITES:
        raise MovaError(f"unknown suite '{name}'.{suggest(name, SUITES)} Known: {', '.join(SUITES)}")
    return SUITES[name]


def part_named(name: str) -> CardPart:
    """A part by name."""
    return next(part for part in PARTS if part.name == name)


def next_unit(missing: Sequence[CardUnit], left: float, fresh: bool) -> CardUnit | None:
    """The first of the missing units that is planned to fit `left` seconds; of a fresh slice the first in any case."""
    if fresh and missing:
        return missing[0]
    return next((unit for unit in missing if unit.seconds + START <= left), None)


@dataclass(frozen=True)
class PlannedSlice:
    """What one run of the command is planned to do. minutes: its `--minutes`."""

    minutes: float
    units: list[CardUnit]

    @property
    def seconds(self) -> float:
        """Planned for its units, starts of processes not counted."""
        return sum(unit.seconds for unit in self.units)


def planned_slices(
    suite: CardSuite, minutes: float, only: Sequence[str] = ()
) -> tuple[list[PlannedSlice], list[CardUnit]]:
    """The slices in which units are planned to be done within the suite's device time, as a run without failures takes
    them, the last of them as long as what is left; and the units beyond it.
    """
    missing, slices, rest = suite.units(only), [], suite.minutes
    while missing and rest * 60 > RESERVE + START:
        long = min(minutes, rest)
        left, taken, part = long * 60 - RESERVE, list[CardUnit](), None
        while (unit := next_unit(missing, left, not taken)) is not None:
            starts = not taken or (part_named(unit.part).apart and unit.part != part)
            left -= unit.seconds + (START if starts else 0.0)
            part = unit.part
            taken.append(unit)
            missing.remove(unit)
        slices.append(PlannedSlice(long, taken))
        rest -= long
    return slices, missing
