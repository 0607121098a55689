"""The result of simulating all ranks of a run, as text and as plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self


@dataclass(frozen=True)
class Simulation:
    """Results that are consistent over all ranks; an inconsistency raises MovaError instead.

    dimensions: sizes of the mesh. coordinates: of each rank, along `dimensions`. groups: by kind, their number, their
    size and the ranks of the first two. data, noise, checkpoint: statistics by name; a sampling run has no checkpoint.
    sent: bytes that all ranks send in a step, by kind of collective. seconds: measured on this machine, by part.
    """

    dimensions: dict[str, int]
    coordinates: list[list[int]]
    groups: dict[str, dict[str, Any]]
    data: dict[str, Any]
    noise: dict[str, Any]
    checkpoint: dict[str, Any]
    sent: dict[str, int]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    def __str__(self) -> str:
        """The report's section on all ranks."""
        lines = [f"simulated, all {len(self.coordinates)} ranks, in {sum(self.seconds.values()):.1f} s"]
        for name, group in self.groups.items():
            first = ", ".join(members_in_words(members) for members in group["first"])
            lines.append(f"  {name:<18}{group['groups']} groups of {group['ranks']} ranks: {first}, ...")
        lines += [*(self._training() if self.checkpoint else self._sampling())]
        sent = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in self.sent.items())
        return "\n".join([*lines, f"  {'GB sent by all':<18}{sent or 'none'}"])

    def _sampling(self) -> Iterator[str]:
        data, noise = self.data, self.noise
        turns = f"{data['turns']} turn{'s' if data['turns'] > 1 else ''} of {data['batch']} in each group"
        idle = f", in the last of which {data['idle_ranks']} ranks have none" if data["idle_ranks"] else ""
        yield f"  {'clips':<18}{data['clips']}, each once and in its place, in {turns}{idle}"
        alike = f"each the same in the {noise['alike']} ranks of a clip"
        yield f"  {'noise':<18}{noise['different']} different draws, {alike}"

    def _training(self) -> Iterator[str]:
        data, noise, saved = self.data, self.noise, self.checkpoint
        once = f"each once an epoch in {data['epochs']} epochs"
        if data.get("sources"):
            once = f"of {data['sources']} sources by their weights, each once in every epoch of its source"
        yield (
            f"  {'data order':<18}{data['clips']} clips, {once}; resumed after {data['steps']} steps by "
            f"{data['resumed_ranks']} ranks"
        )
        yield (
            f"  {'noise':<18}{noise['different']} different draws in {noise['steps']} steps, each the same in the "
            f"{noise['alike']} ranks of a clip"
        )
        writers = f"{saved['writing_ranks']} ranks, {saved['most_bytes_of_a_rank'] / 1e9:.3f} GB at most each"
        yield f"  {'checkpoint':<18}{sum(saved['bytes'].values()) / 1e9:.1f} GB by {writers}"
        if saved["plan"]:
            plan = saved["plan"]
            yield (
                f"  {'its plan':<18}{plan['local_seconds']:.2f} s in each rank, {plan['global_seconds']:.2f} s in rank "
                f"0, which gathers {plan['gathered_bytes'] / 1e6:.1f} MB; then {plan['written_ranges']} checksums of "
                f"{plan['gathered_checksum_bytes'] / 1e6:.1f} MB, which it joins to about {plan['checksums']}"
            )


def members_in_words(members: Sequence[int]) -> str:
    """Ranks as text: "0-15", "0-48 by 16" or "0/3/4"."""
    steps = {b - a for a, b in pairwise(members)}
    if len(members) > 2 and len(steps) == 1:
        step = steps.pop()
        return f"{members[0]}-{members[-1]}" + (f" by {step}" if step > 1 else "")
    return "/".join(map(str, members))
