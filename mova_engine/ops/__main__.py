"""`mova ops --device cpu`: what each operator would use on a device, and why not the others."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from mova_engine.config.command import Command, spelled, split_names
from mova_engine.errors import MovaError, run_cli

ABOUT = """Show which implementation each operator would use on a device, and why not the others.

The device itself need not be present; that is said in the first line. With --assume, on a machine that is not here:
mova ops --device cuda --assume sm90 --with flash-attn-3
"""


@dataclass(frozen=True, kw_only=True)
class OpsConfig:
    """Which machine, for what."""

    device: str = "cpu"
    """cpu, cuda or npu."""
    inference: bool = False
    """Also admit kernels without a gradient."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What a model computes in."""
    assume: str | None = None
    """A machine that is not here: sm90, 910a2, avx512_bf16."""
    packages: Annotated[str | None, spelled("--with")] = None
    """Packages that it has, e.g. flash-attn-3,apex."""
    table: bool = False
    """Print the choices on usual machines instead, as Markdown (docs/operators.md)."""

    def __post_init__(self) -> None:
        if self.packages is not None and self.assume is None:
            raise MovaError("--with says what a machine has that is not here: give --assume too")


OPS = Command("mova ops", OpsConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the operator table of a device, or of a machine that is not here; returns 0."""
    config = OPS.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    if config.table:
        from mova_engine.ops.choice_table import choice_tables

        sys.stdout.write("\n".join((*choice_tables(), "")))
        return 0
    from mova_engine.ops.choice import describe_choices
    from mova_engine.ops.lossy_table import LOSSY
    from mova_engine.ops.machine import assumed_machine

    if config.assume is not None:
        machine = assumed_machine(config.device, config.assume, split_names(config.packages))
        line = f"device {machine}: assumed, not asked"
    else:
        # Asking this machine needs torch.
        from mova_engine.backend import describe_backend
        from mova_engine.ops.registry import ThisMachine

        backend = describe_backend(config.device)
        absent = backend.unavailable()
        machine = ThisMachine(backend)
        line = f"device {backend.name}: {f'NOT usable here: {absent}' if absent else backend.describe()}"
        if not absent and machine.measured.about:
            line += f"\n{machine.measured.about}"
    lines = describe_choices(machine, training=not config.inference, dtype=config.dtype)
    # For sampling alone, where it is named: whatever the others are asked for.
    lossy = describe_choices(machine, training=False, dtype=config.dtype, operators=LOSSY)
    sys.stdout.write("\n".join([line, *lines, *lossy]))
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
