"""Found by Python at its start when this folder is on PYTHONPATH: `import torch_npu` then gets the emulator.

Child processes (data workers, torchrun, commands that tests start) inherit PYTHONPATH and so the emulator.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[3])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch_npu where it is installed, and wraps its import."""

    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "torch_npu" else None
        if spec is not None:
            spec.loader.exec_module = _emulated(spec.loader.exec_module)
        return spec


def _emulated(run):
    def exec_module(module):
        if _TESTS not in sys.path:
            sys.path.append(_TESTS)
        from ascend.emulator import start

        start.load_libraries()
        run(module)
        start.install_kernels()

    return exec_module


sys.meta_path.insert(0, _Finder())
