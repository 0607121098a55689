"""`python -m mova_kernels.cpu`: one line on whether the native library is there and what this CPU offers it."""

from mova_kernels.cpu import features, unavailable


def main() -> int:
    reason = unavailable()
    if reason:
        print(f"native CPU library: no ({reason})")
    else:
        print(f"native CPU library: yes; this CPU has {', '.join(features()) or 'none of its vector extensions'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
