"""`python -m mova_kernels.cpu`: one line on whether the native library is there and what this CPU offers it."""

from mova_kernels.cpu import features, isa, threaded, unavailable


def main() -> int:
    reason = unavailable()
    if reason:
        print(f"native CPU library: no ({reason})")
    else:
        found = ", ".join(features()) or "none of its vector extensions"
        threads = "torch's threads" if threaded() else "one thread, since the compiler's OpenMP is not torch's"
        print(f"native CPU library: yes; this CPU has {found}; {isa()} kernels on {threads}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
