"""`python -m mova_engine.ops --device cpu`: what each operator would use on a device, and why not the others.

With --assume, on a machine that is not here: `--device cuda --assume sm90 --with flash-attn-3`.
"""

import importlib

from mova_engine.errors import CommandParser, MovaError, run_cli
from mova_engine.ops.choice import describe_choices
from mova_engine.ops.machine import KINDS, Machine, assumed_machine


def main(argv: list[str] | None = None) -> int:
    """Print the operator table of a device. The device itself need not be present; that is said in the first line."""
    parser = CommandParser(prog="python -m mova_engine.ops", description=__doc__)
    parser.add_argument("--device", default="cpu", help=f"one of {', '.join(KINDS)} (default cpu)")
    parser.add_argument("--inference", action="store_true", help="also admit kernels without a gradient")
    parser.add_argument("--dtype", default="bfloat16", help="what a model computes in (default bfloat16)")
    parser.add_argument("--assume", help="a machine that is not here: sm90, 910a2, avx512_bf16")
    parser.add_argument("--with", dest="packages", help="packages that it has, e.g. flash-attn-3,apex")
    args = parser.parse_args(argv)
    machine, line = machine_asked_for(args.device, args.assume, args.packages)
    print("\n".join([line, *describe_choices(machine, training=not args.inference, dtype=args.dtype)]))
    return 0


def machine_asked_for(device: str, assume: str | None, packages: str | None) -> tuple[Machine, str]:
    """The machine that options name, and a line that says which it is."""
    if assume is not None:
        machine = assumed_machine(device, assume, filter(None, (packages or "").split(",")))
        return machine, f"device {machine}: assumed, not asked"
    if packages is not None:
        raise MovaError("--with says what a machine has that is not here: give --assume too")
    # Asking this machine needs torch.
    backend = importlib.import_module("mova_engine.backend").describe_backend(device)
    absent = backend.unavailable()
    line = f"device {backend.name}: {f'NOT usable here: {absent}' if absent else backend.describe()}"
    return importlib.import_module("mova_engine.ops.registry").ThisMachine(backend), line


if __name__ == "__main__":
    run_cli(main)
