"""Where tables of measurements lie: the tiles of Triton's kernels, and the choice among implementations of operators.

The folder that the environment variable MOVA_TILES names, or else `tiles` beside this file.
"""

import os
from pathlib import Path

FOLDER = "MOVA_TILES"


def tables_folder() -> Path:
    """ValueError where MOVA_TILES names no folder. The folder beside this file need not be there."""
    named = os.environ.get(FOLDER)
    if named and not Path(named).is_dir():
        raise ValueError(f"{FOLDER} is '{named}', which is no folder; create it or unset the variable")
    return Path(named) if named else Path(__file__).with_name("tiles")
