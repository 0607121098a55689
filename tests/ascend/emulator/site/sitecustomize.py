"""Found by Python at its start when this folder is on PYTHONPATH: `import torch_npu` gets the emulator.

Child processes (data workers, torchrun, commands that tests start) inherit PYTHONPATH and so the emulator.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[3])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch_npu and MindIE-SD where they are installed, and wraps their import."""

    def find_spec(self, name, path, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name) if name in ("torch_npu", "mindiesd") else None
        if spec is not None:
            spec.loader.exec_module = _emulated(name, spec.loader.exec_module)
        return spec


def _emulated(name, run):
    def exec_module(module):
        if _TESTS not in sys.path:
            sys.path.append(_TESTS)
        from ascend.emulator import start

        if name == "torch_npu":
            start.load_libraries()
            run(module)
            start.install_kernels()
        else:
            run(module)
            start.install_mindie_kernels()

    return exec_module


sys.meta_path.insert(0, _Finder())
