"""Plays the tasks of a step on streams that share a device and its links, and says how long the device waits.

A stream runs its tasks in order; a task also waits for the tasks that it depends on. Tasks that run at the same time
on one resource (the device's arithmetic and memory, the links of a node, the network) share it equally: each takes as
much longer. So bytes and FLOPs are conserved, and nothing is faster for being beside something else.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

COMPUTE, NODE, NETWORK = "compute", "node", "network"
# The stream on which the model computes.
MAIN = "main"


@dataclass
class Task:
    """seconds: alone on its resource. after: numbers of the tasks that it waits for, beside the one before it on its
    stream. what: of a collective its kind and group. direction: "forward" or "backward" ("update" after both).
    """

    stream: str
    resource: str
    seconds: float
    after: tuple[int, ...]
    what: str
    direction: str


@dataclass(frozen=True)
class StepTimeline:
    """A simulated step, in seconds. step: from its begin to its end. computing: in which the main stream computed.
    exposed: in which it waited for collectives, by "kind group, direction" of the one that ended the wait.
    collectives: how long each kind of collective takes by itself, by the same names. calls: how many they are.
    """

    step: float
    computing: float
    exposed: dict[str, float]
    collectives: dict[str, float]
    calls: dict[str, int]

    @property
    def waiting(self) -> float:
        """Exposed communication: seconds in which the main stream waited for collectives."""
        return sum(self.exposed.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)

    def __str__(self) -> str:
        """The report's section."""
        lines = [
            f"simulated, not measured: step {self.step:.2f} s, computing {self.computing:.2f}, waiting for collectives "
            f"{self.waiting:.2f} ({self.waiting / self.step:.1%})",
            f"  {'collective and group':<44}{'calls':>7}{'s alone':>10}{'s exposed':>11}",
        ]
        for name, seconds in self.collectives.items():
            lines.append(f"  {name:<44}{self.calls[name]:>7}{seconds:>10.3f}{self.exposed.get(name, 0.0):>11.3f}")
        return "\n".join(lines)


def play(tasks: Sequence[Task]) -> StepTimeline:
    """Simulate tasks, which are in the order in which the host started them."""
    before, following, missing = _dependencies(tasks)
    finished = [0.0] * len(tasks)
    ended: dict[str, int] = {}
    # Work left of the tasks that run, and how many run on a resource.
    left = {number: tasks[number].seconds for number, count in enumerate(missing) if not count}
    exposed: dict[str, float] = defaultdict(float)
    now = computing = 0.0
    for number in left:
        _blame(tasks, before, finished, ended, number, now, exposed)
    while left:
        sharing: dict[str, int] = defaultdict(int)
        for number in left:
            sharing[tasks[number].resource] += 1
        passed = min(seconds * sharing[tasks[number].resource] for number, seconds in left.items())
        now += passed
        done = []
        for number in left:
            task = tasks[number]
            left[number] -= passed / sharing[task.resource]
            if task.stream == MAIN:
                computing += passed
            if left[number] <= 1e-12:
                done.append(number)
        for number in done:
            del left[number]
            finished[number], ended[tasks[number].stream] = now, number
        for number in done:
            for other in following[number]:
                missing[other] -= 1
                if not missing[other]:
                    left[other] = tasks[other].seconds
                    _blame(tasks, before, finished, ended, other, now, exposed)
    names: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for task in tasks:
        if task.resource != COMPUTE:
            names[_name(task)] += task.seconds
            calls[_name(task)] += 1
    return StepTimeline(now, computing, dict(sorted(exposed.items())), dict(sorted(names.items())), dict(calls))


def _dependencies(tasks: Sequence[Task]) -> tuple[list[set[int]], list[list[int]], list[int]]:
    """Of each task: those it waits for, those that wait for it, and how many it waits for."""
    last: dict[str, int] = {}
    before: list[set[int]] = []
    following: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        waits = set(task.after) | ({last[task.stream]} if task.stream in last else set())
        before.append(waits)
        for other in waits:
            following[other].append(number)
        last[task.stream] = number
    return before, following, [len(waits) for waits in before]


def _blame(
    tasks: Sequence[Task],
    before: Sequence[Iterable[int]],
    finished: Sequence[float],
    ended: Mapping[str, int],
    number: int,
    now: float,
    exposed: dict[str, float],
) -> None:
    """Where a task of the main stream could begin no sooner than now, add the wait to the collective that ended it."""
    if tasks[number].stream != MAIN:
        return
    idle = now - (finished[ended[MAIN]] if MAIN in ended else 0.0)
    cause = number
    while idle > 0 and tasks[cause].resource == COMPUTE:
        # The last to finish of what it waited for; beside the main stream it may have waited for a collective itself.
        cause = max(before[cause], key=lambda other: finished[other], default=-1)
        if cause < 0:
            return
    if idle > 0:
        exposed[_name(tasks[cause])] += idle


def _name(task: Task) -> str:
    return f"{task.what}, {task.direction}"
