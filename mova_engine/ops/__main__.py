"""`python -m mova_engine.ops --device cpu`: what each operator would use on a device, and why not the others."""

from mova_engine.backend import NAMES, describe_backend
from mova_engine.errors import CommandParser, run_cli
from mova_engine.ops import OPERATORS, REFERENCE, bind_operator, refusal


def main(argv: list[str] | None = None) -> int:
    """Print the operator table of a device. The device itself need not be present; that is said in the first line."""
    parser = CommandParser(prog="python -m mova_engine.ops", description=__doc__)
    parser.add_argument("--device", default="cpu", help=f"one of {', '.join(NAMES)} (default cpu)")
    parser.add_argument("--inference", action="store_true", help="also admit kernels without a gradient")
    args = parser.parse_args(argv)
    backend = describe_backend(args.device)
    absent = backend.unavailable()
    print(f"device {backend.name}: {f'NOT usable here: {absent}' if absent else backend.describe()}")
    for operator in OPERATORS.values():
        _, choice = bind_operator(operator, backend, training=not args.inference)
        chosen = next((i.label for i in operator.implementations if i.name == choice.implementation), REFERENCE)
        print(f"{operator.name:28} -> {chosen}")
        for implementation in operator.implementations:
            if implementation.name != choice.implementation:
                # What is used only when named is tried when it is.
                training = not args.inference
                if implementation.automatic:
                    reason = refusal(operator, implementation, backend, training)
                else:
                    reason = implementation.refusal(backend, training)
                also = f"also {implementation.label}{'' if implementation.automatic else ' (when named)'}"
                print(f"{'':31}{f'not {implementation.label}: {reason}' if reason else also}")
    return 0


if __name__ == "__main__":
    run_cli(main)
