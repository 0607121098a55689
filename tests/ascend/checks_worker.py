"""One rank, with an NPU of its own, of checks that tests/distributed runs on CPUs; started by torchrun.

Arguments: the folder where each rank writes what its checks returned, and a JSON list of [name, arguments].
"""

import json
import os
import sys
from pathlib import Path

from distributed.world import DEVICE


def main(folder: Path, wanted: list) -> None:
    os.environ[DEVICE] = "npu"
    # Which looks at the device's name.
    from distributed import checks

    # The processes meet once, in the first check.
    found = [getattr(checks, name)(**arguments) for name, arguments in wanted]
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
