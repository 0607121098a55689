"""What a clip's file holds depends on the clip alone."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import hashlib, os, sys
if sys.argv[1] == "one":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np
from mova_engine.data.media.write import encode_mp4
drawn = np.random.default_rng(0)
patches = np.kron(drawn.integers(0, 255, (6, 10, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
video = np.stack([np.roll(patches, 3 * i, 1) for i in range(40)])
print(hashlib.sha256(encode_mp4("clip", video, np.zeros(80_000, np.float32))).hexdigest())
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has nothing to compare")
def test_the_number_of_cores_changes_no_byte():
    found = [
        subprocess.run([sys.executable, "-c", SCRIPT, cores], check=True, capture_output=True, text=True).stdout
        for cores in ("one", "all")
    ]
    assert len(found[0]) == 65 and found[0] == found[1]
