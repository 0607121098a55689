"""mova_engine: train, fine-tune, run and measure MOVA, the open model that generates video and its sound together.

Importing the package imports nothing else: pick what you need, e.g. `from mova_engine.ops import bind`. Only where a
command of the engine was started (`python -m mova_engine.train`, `mova train`) does it act: `load_devices_when_asked`.
"""

import os
import sys

__version__ = "0.1.0"

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
# What the user asked of torch, before a command changes it: the doctor examines that.
autoload_asked = os.environ.get(AUTOLOAD)


def load_devices_when_asked() -> None:
    """Keep torch, where it is yet to be imported, from importing the device packages that are installed beside it.

    One whose own libraries are missing, as torch_npu's are until CANN is set up, makes `import torch` fail whatever
    device is wanted. The engine imports the package of the device that it is asked for.
    """
    if "torch" not in sys.modules:
        os.environ[AUTOLOAD] = "0"


def _is_own_command() -> bool:
    """Whether this is `python -m mova_engine.SOMETHING`: "-m" stands first while Python looks for the module."""
    words = (word.removeprefix("-m").split(".")[0] for word in sys.orig_argv)
    return sys.argv[:1] == ["-m"] and __name__ in words


if _is_own_command():
    load_devices_when_asked()
