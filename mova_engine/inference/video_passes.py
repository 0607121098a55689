"""What each evaluation of the denoising loop runs: both towers, or the audio tower alone on an earlier one's video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mova_engine.diffusion.guidance import Branch, Guidance
from mova_engine.distributed.branches import own_branches
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.velocities import VelocityModel


@dataclass(frozen=True)
class Pass:
    """What one evaluation runs. guidance: at its noise level. own: the branches that this process evaluates.
    video: "run": both towers; "record": both, and what later evaluations need of the video is kept; "recorded": the
    audio tower alone, on what was kept.
    """

    guidance: Guidance
    own: tuple[Branch, ...]
    video: Literal["run", "record", "recorded"]

    @property
    def shared(self) -> bool:
        """Whether other processes evaluate other branches."""
        return len(self.own) < len(self.guidance.branches)


def phases(guidance: Guidance, places: Sequence[float], experts: Sequence[int], of: int) -> list[int]:
    """For each evaluation, the first one of its phase: a run of evaluations by one expert with the same branches of
    guidance. What is kept of the video never leaves its phase. places: each one's share of the steps. of: how many
    experts the model has; one serves as both.
    """
    kinds = [(expert % of, guidance.at(share).branches) for expert, share in zip(experts, places, strict=True)]
    first: list[int] = []
    for number, kind in enumerate(kinds):
        first.append(first[-1] if number and kind == kinds[number - 1] else number)
    return first


def reusing_passes(
    guidance: Guidance,
    places: Sequence[float],
    experts: Sequence[int],
    of: int,
    reused: Sequence[int],
    place: Processes,
) -> list[Pass]:
    """The passes of a run whose evaluations `reused` take the video of the one before. The first four arguments are
    those of `phases`. Raises MovaError for evaluations that cannot.
    """
    first, skipped = phases(guidance, places, experts, of), set(reused)
    for number in sorted(skipped):
        if not 0 <= number < len(first):
            raise MovaError(f"step {number + 1} cannot reuse a video: there are {len(first)} steps")
        if first[number] == number:
            raise MovaError(
                f"step {number + 1} cannot reuse the video of the step before: it is the first of an expert, or "
                "guidance begins or ends there"
            )
    found: list[Pass] = []
    for number, share in enumerate(places):
        guided = guidance.at(share)
        video = "recorded" if number in skipped else "record" if number + 1 in skipped else "run"
        found.append(Pass(guided, _owned(guided, place), video))
    return found


def repeating_passes(
    guidance: Guidance, places: Sequence[float], experts: Sequence[int], of: int, every: int, place: Processes
) -> list[Pass]:
    """The passes of a run on a given video, whose tower runs in one of `every` evaluations; 0: in the first of each
    phase alone.
    """
    found: list[Pass] = []
    # By phases, not by what this process has of an earlier one: processes that share guidance must agree on it.
    for number, first in enumerate(phases(guidance, places, experts, of)):
        guided = guidance.at(places[number])
        again = number == first or (every and number % every == 0)
        video = "run" if every == 1 else "record" if again else "recorded"
        found.append(Pass(guided, _owned(guided, place), video))
    return found


def entered(model: VelocityModel, passes: Sequence[Pass], experts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """For streamed layers: the forwards of all passes, as `LayerSource.plan` takes them."""
    recorded: list[tuple[Branch, ...]] = []
    for each, expert in zip(passes, experts, strict=True):
        if each.video == "recorded":
            yield from ((expert, 1) for together in recorded if set(together) & set(each.own))
        else:
            recorded = model.forwards(each.own)
            yield expert, len(recorded)


def _owned(guidance: Guidance, place: Processes) -> tuple[Branch, ...]:
    """The branches that this process evaluates."""
    # With fewer branches than processes to share them, each evaluates all: their shards of weights stay in step.
    alike = len(guidance.branches) < place.branches.size
    return guidance.branches if alike else own_branches(guidance.branches, place.branches)
