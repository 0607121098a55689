"""Which versions go together, as published; looked up on 22 November 2026. The one place to add a release to.

Sources:
* torch_npu, CANN and Python: COMPATIBILITY.en.md in the repository Ascend/pytorch; the rows of TorchNPU 26.1.1 are in
  the Chinese page of the same repository on gitcode. The pin on torch is also in the metadata of each wheel on PyPI.
* drivers: "CUDA Compatibility", section Minor Version Compatibility, docs.nvidia.com/deploy/cuda-compatibility.
"""

from typing import NamedTuple

# The torch that every test ran with (the oldest that may serve is in pyproject.toml), and the oldest Python.
TORCH_TESTED = "2.13.0"
PYTHON_LEAST = (3, 11)

# Major version of the CUDA runtime that torch was built with -> the least major version of the driver, on Linux.
NVIDIA_DRIVER = {11: 450, 12: 525, 13: 580}


class AscendRow(NamedTuple):
    """One row of the published table: a wheel of torch_npu, the torch it is for, the CANN it was made with."""

    torch_npu: str
    torch: str
    cann: str


ASCEND = tuple(
    AscendRow(*row.split())
    for row in """
        2.12.0.post2   2.12.0   9.1
        2.12.0         2.12.0   9.1.0
        2.11.0.post2   2.11.0   9.1
        2.11.0         2.11.0   9.1.0
        2.10.0.post6   2.10.0   9.1
        2.10.0.post4   2.10.0   9.1.0
        2.10.0         2.10.0   9.0.0
        2.9.0.post8    2.9.0    9.1
        2.9.0.post6    2.9.0    9.1.0
        2.9.0.post2    2.9.0    9.0.0
        2.9.0          2.9.0    8.5.0
        2.8.0.post4    2.8.0    9.0.0
        2.8.0.post2    2.8.0    8.5.0
        2.8.0          2.8.0    8.3.RC1
        2.7.1.post10   2.7.1    9.1
        2.7.1.post8    2.7.1    9.1.0
        2.7.1.post4    2.7.1    9.0.0
        2.7.1.post2    2.7.1    8.5.0
        2.7.1          2.7.1    8.3.RC1
    """.strip().splitlines()
)

# Wheels that are on PyPI while the table has no row for them: the CANN that the page of the newest wheel tells to
# install. A guess by the nearest row, and reported as one.
ASCEND_UNLISTED_CANN = {"2.13.0": "9.1.0", "2.14.0": "9.1.0"}

# torch release -> newest Python that its torch_npu is built for (the oldest is below the engine's own).
ASCEND_PYTHON = {
    **dict.fromkeys(((2, 7), (2, 8), (2, 9), (2, 10)), (3, 13)),
    **dict.fromkeys(((2, 11), (2, 12), (2, 13)), (3, 14)),
}
