"""The tuner's choice for RMSNorm in Triton's interpreter; `test_tuner.py` starts it and looks at what it writes."""

import torch

from mova_kernels import triton_tiles, triton_tuner
from mova_kernels.tune import arguments, tune

CPU, ARCH = torch.device("cpu"), "sm_90"
ARGUMENTS = ["--dtype", "float32", "--width", "256", "--rows", "3", "--only", "rms_norm_"]


def main() -> None:
    torch.set_num_threads(1)
    # The CPU takes the part of a GPU; what fits it, what is wrong and what is fast are made up.
    triton_tiles.architecture = lambda device: ARCH
    triton_tuner.fits = lambda key, forms, tile, capability: tile.rows != 32
    backward = triton_tuner.backward

    def tile() -> triton_tiles.Tile:
        """The one that is being tried."""
        (tried,) = triton_tiles.tuned(ARCH).values()
        return tried

    def partly_wrong(*args):
        found = backward(*args)
        return tuple(x * 1.5 for x in found) if (tile().rows, tile().warps) == (16, 4) else found

    def time(function) -> float:
        function()
        rows, sums = tile().rows, tile().sums
        return 1 - 0.001 * rows if function.__name__ == "forward" else 1 / rows + 1e-6 * sums

    triton_tuner.backward = partly_wrong
    tune(arguments(ARGUMENTS), CPU, "an interpreter", time)


if __name__ == "__main__":
    main()
