"""What operators use on usual machines, as Markdown tables: the page docs/operators.md, from the declarations."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from mova_engine.ops.choice import choose
from mova_engine.ops.declarations import Operator
from mova_engine.ops.machine import PACKAGES, Machine, assumed_machine
from mova_engine.ops.table import OPERATORS

# Titles of columns -> machines, with what an installation for such a device brings: kind, capability, packages beside.
_COLUMNS = {
    "CPU": "cpu avx512",
    "Ampere sm80": "cuda sm80",
    "Ada sm89": "cuda sm89",
    "Hopper sm90": "cuda sm90",
    "Blackwell sm100": "cuda sm100",
    "Blackwell sm120": "cuda sm120",
    "Ascend 910A2": "npu 910a2",
    "910A2, triton-ascend": "npu 910a2 triton",
}
_ATTENTION = ("attention", "attention_lse", "attention_backward")


def choice_tables() -> list[str]:
    """Lines of two Markdown tables: every operator's choice in bfloat16, and attention's order by packages."""
    machines = {title: _machine(*words.split()) for title, words in _COLUMNS.items()}
    machines["GPU without triton"] = replace(machines["Hopper sm90"], packages=frozenset())
    columns = [
        [{c.operator: c.implementation for c in choose(machine, training=training)} for training in (True, False)]
        for machine in machines.values()
    ]
    rows = [[f"`{name}`", *(_either(*(chosen[name] for chosen in column)) for column in columns)] for name in OPERATORS]
    attention = [
        [title, *(_in_order(OPERATORS[name], machine) for name in _ATTENTION)]
        for title, machine in machines.items()
        if machine.version and machine.packages
    ]
    return [
        *_markdown(["operator", *machines], rows),
        "",
        *_markdown(["GPU", *(f"`{name}`" for name in _ATTENTION)], attention),
    ]


def _machine(kind: str, capability: str, *packages: str) -> Machine:
    return assumed_machine(kind, capability, packages)


def _either(training: str, sampling: str) -> str:
    return training if training == sampling else f"{training}; {sampling}"


def _in_order(operator: Operator, machine: Machine) -> str:
    """Implementations that may serve in training where every package is installed, the first first, to the one that
    takes every dtype and needs no package.
    """
    full, names = replace(machine, packages=frozenset(PACKAGES)), []
    for entry in operator.preferred(full):
        if entry.automatic and entry.refusal(full, training=True) is None:
            names.append(entry.name)
            if not entry.needs and "float32" in entry.dtypes:
                break
    return ", ".join(names)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
