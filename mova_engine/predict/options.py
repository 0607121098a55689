"""Which option of the trainer or the sampler turns a policy's setting on; what none turns on is not recommended."""

from dataclasses import dataclass, fields

from mova_engine.config.memory import CHECKPOINTING
from mova_engine.predict.job import Job, Layout, Policy, sharded

PLAIN = Policy()


@dataclass(frozen=True)
class Option:
    """words: what the command line says. sharded: whether the option wants weights that are shared among devices (True)
    or whole on each (False); None: it takes both.
    """

    words: tuple[str, ...]
    sharded: bool | None = None


_TRAINING = {
    **{("checkpointing", name): Option(("--checkpointing", name)) for name in CHECKPOINTING},
    ("inputs", "host"): Option(("--offload",)),
}
# Task -> (field of a policy, its value) -> option. A value that is missing here cannot be run.
OPTIONS: dict[str, dict[tuple[str, str], Option]] = {
    "full": {**_TRAINING, ("optimizer", "host"): Option(("--parallel.offload",), sharded=True)},
    "lora": {
        **_TRAINING,
        ("frozen", "fp8"): Option(("--lora.base", "fp8"), sharded=False),
        ("weights", "host"): Option(("--parallel.offload",), sharded=True),
    },
    "inference": {
        ("expert", "host"): Option(("--offload",), sharded=False),
        ("weights", "host"): Option(("--offload",), sharded=True),
    },
}


def changes(policy: Policy, base: Policy = PLAIN) -> dict[str, str]:
    """Fields in which a policy differs from another."""
    return {f.name: getattr(policy, f.name) for f in fields(Policy) if getattr(policy, f.name) != getattr(base, f.name)}


def option(task: str, layout: Layout, name: str, value: str) -> Option | None:
    """What turns a setting on; None where nothing does, or not with weights that are shared so."""
    found = OPTIONS[task].get((name, value))
    return found if found and found.sharded in (None, sharded(layout) > 1) else None


def missing(job: Job, layout: Layout, policy: Policy) -> dict[str, str]:
    """Of what differs from the plain policy: that which no option turns on."""
    found = {name: value for name, value in changes(policy).items() if option(job.task, layout, name, value) is None}
    if policy.inputs == "host" and policy.checkpointing == "none":
        found["inputs"] = "host"  # inputs of checkpointed layers
    return found


def words(job: Job, layout: Layout, policy: Policy, base: Policy = PLAIN) -> list[str]:
    """The options of a policy that can be run, as far as it differs from another."""
    found = [option(job.task, layout, name, value) for name, value in changes(policy, base).items()]
    return [word for one in found if one is not None for word in one.words]
