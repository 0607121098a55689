"""A user's folder of weights: which files of the manifest it holds, what may be used, and what opens them."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from mova_engine.errors import MovaError
from mova_engine.ops import resolve
from mova_engine.scores.weights_manifest import WEIGHTS, WeightsFile


class WeightsFolder:
    """Files of weights by their names in the manifest; each is opened once for a device, whichever thread asks."""

    def __init__(
        self, folder: Path | None, *, accept_noncommercial: bool = False, digest: Callable[[Path], str] | None = None
    ) -> None:
        """folder: None holds nothing. digest: SHA-256 of a file, where one is to be kept from run to run.

        Raises MovaError where there is no such folder.
        """
        if folder is not None and not folder.is_dir():
            raise MovaError(f"{folder}: no such folder of weights")
        self.folder = folder
        self.accept_noncommercial = accept_noncommercial
        self._file_digest = digest or file_digest
        self._digests: dict[str, str] = {}
        self._opened: dict[tuple[str, torch.device], Any] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> Path | None:
        """Where a file of the manifest lies: under the first of its names that the folder has; None without."""
        if self.folder is None:
            return None
        for file in WEIGHTS[name].files:
            path = self.folder / file
            if path.is_dir() if file.endswith("/") else path.is_file():
                return path
        return None

    def lacking(self, names: Iterable[str]) -> str:
        """Why scores that need these files cannot be measured; "" where they can."""
        wanted = [WEIGHTS[name] for name in names]
        missing = [each.files[0] for each in wanted if self.find(each.name) is None]
        if missing:
            return f"weights missing: {', '.join(missing)}" + ("" if self.folder else " (--weights DIR)")
        refused = [each for each in wanted if each.commercial is False and not self.accept_noncommercial]
        if refused:
            told = ", ".join(f"{each.files[0]}: {each.licence}" for each in refused)
            return f"weights that are not for commercial use ({told}) need --accept-noncommercial"
        return ""

    def digest(self, name: str) -> str:
        """SHA-256 of a file, with "+" and that of what the manifest has `beside` it; of a folder, that of its files'
        names and digests. MovaError where it is missing.
        """
        self._found(WEIGHTS[name])
        return self.file_digest_of(name)

    def file_digest_of(self, name: str) -> str:
        """The same of what lies there, may it be used or not."""
        path = self.find(name)
        if path is None:
            raise MovaError(self.lacking([name]))
        with self._lock:
            if name not in self._digests:
                self._digests[name] = self._folder_digest(path) if path.is_dir() else self._file_digest(path)
                beside = path.with_name(WEIGHTS[name].beside or path.name)
                if beside != path and path.suffix == ".safetensors" and beside.is_file():
                    self._digests[name] += f"+{self._file_digest(beside)}"
            return self._digests[name]

    def open(self, name: str, device: torch.device) -> Any:
        """What the manifest's `open` makes of a file, modules on the device. MovaError where it is missing or another
        one.
        """
        with self._lock:
            if (name, device) not in self._opened:
                entry = WEIGHTS[name]
                self._opened[name, device] = _on_device(opened(entry, self._found(entry)), device)
            return self._opened[name, device]

    def _found(self, entry: WeightsFile) -> Path:
        if reason := self.lacking([entry.name]):
            raise MovaError(reason)
        path = self.find(entry.name)
        assert path is not None
        return path

    def _folder_digest(self, folder: Path) -> str:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        told = "".join(f"{path.name} {self._file_digest(path)}\n" for path in files)
        return hashlib.sha256(told.encode()).hexdigest()


def opened(entry: WeightsFile, path: Path) -> Any:
    """What the manifest's `open` makes of a file. MovaError for one that is another file, whatever it holds."""
    try:
        return resolve(entry.open)(path)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Its tables are there and hold something else: text for numbers, a tensor for a table, numbers for names.
        raise MovaError(f"{path} does not hold the weights of {entry.about} ({error})") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file. MovaError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None


def _on_device(opened: Any, device: torch.device) -> Any:
    if isinstance(opened, torch.nn.Module):
        return opened.to(device)
    if isinstance(opened, tuple):
        return tuple(_on_device(each, device) for each in opened)
    return opened
