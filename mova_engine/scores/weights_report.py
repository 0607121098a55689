"""What a folder of weights holds: which files are there and are what they should be, and which scores that leaves."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mova_engine.errors import MovaError
from mova_engine.ops import resolve
from mova_engine.scores.score_table import SCORES
from mova_engine.scores.weights_folder import WeightsFolder, opened
from mova_engine.scores.weights_manifest import WEIGHTS, WeightsFile
from mova_engine.scores.wheel_table import WHEEL_SCORES

State = Literal["found", "missing", "wrong hash", "wrong content"]


@dataclass(frozen=True)
class FileReport:
    """file: its path in the folder. detail: what is wrong with it, or what is not known. sha256: None where missing.

    "wrong hash": it fits the network, but is not the published file; scores use it, and reports tell so. "wrong
    content": it lacks tensors of the network, or has others, or cannot be read; scores refuse it.
    """

    entry: WeightsFile
    state: State
    file: str = ""
    sha256: str | None = None
    detail: str = ""

    @property
    def usable(self) -> bool:
        return self.state in ("found", "wrong hash")


@dataclass(frozen=True)
class ScoreReport:
    """reason: why a score cannot be measured; "" where it can. source: "weights", "a wheel" or "none needed"."""

    name: str
    source: str
    reason: str = ""


def report_files(folder: WeightsFolder) -> Iterator[FileReport]:
    """Every file of the manifest, as it is found. Its names and shapes are checked too, without reading its tensors
    where its format allows that.
    """
    for entry in WEIGHTS.values():
        path = folder.find(entry.name)
        if path is None:
            yield FileReport(entry, "missing")
            continue
        name = str(path.relative_to(folder.folder)) if folder.folder else str(path)
        try:
            opened(entry, path)
            digest = folder.file_digest_of(entry.name)
        except MovaError as error:
            yield FileReport(entry, "wrong content", name, detail=str(error))
            continue
        if entry.published(digest) is False:
            yield FileReport(entry, "wrong hash", name, digest, f"the published file has {entry.sha256[0]}")
        else:
            yield FileReport(entry, "found", name, digest, "" if entry.sha256 else "hash not on record")


def report_scores(folder: WeightsFolder, files: dict[str, FileReport]) -> list[ScoreReport]:
    """Every score, and whether it can be measured with these files and the installed packages."""
    found = []
    for score in SCORES.values():
        source = "weights" if score.weights else "a wheel" if score in WHEEL_SCORES else "none needed"
        reason = folder.lacking(score.weights)
        damaged = [files[name].file for name in score.weights if files[name].state == "wrong content"]
        if not reason and damaged:
            reason = f"wrong content: {', '.join(damaged)}"
        if not reason and score.check:
            try:
                resolve(score.check)()
            except MovaError as error:
                reason = str(error)
        found.append(ScoreReport(score.name, source, reason))
    return found
