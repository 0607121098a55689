"""mova_engine: train, fine-tune, run and measure MOVA, the open model that generates video and its sound together.

The public names are those of `__all__`; each is imported when it is first asked for, so that importing the package
imports nothing else, torch least of all. Only where a command of the engine was started (`python -m mova_engine.train`,
`mova train`) does it act: `load_devices_when_asked`.
"""

import os
import sys

__version__ = "0.1.0"

# The public names, and the modules that hold them.
_PUBLIC = {
    "MovaConfig": "config.model",
    "Pipeline": "inference.pipeline",
    "Trainer": "train.trainer",
    "bind": "ops",
    "load_config": "config.recipes",
}
__all__ = ["MovaConfig", "Pipeline", "Trainer", "bind", "load_config"]

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


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if _is_own_command():
    load_devices_when_asked()
