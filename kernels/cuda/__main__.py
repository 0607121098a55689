"""`python -m mova_kernels.cuda`: one line on whether the CUDA library is there and a GPU that it can use."""

from mova_kernels.cuda import unavailable


def main() -> int:
    reason = unavailable()
    print(f"CUDA library: no ({reason})" if reason else "CUDA library: yes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
