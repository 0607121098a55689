"""What the steps of a run took, from its timings: seconds of a worker, which computes by one thread."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.config.command import read_yaml
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.timings import read_timings
from mova_engine.errors import MovaError
from mova_engine.scores.score_table import SCORES


@dataclass(frozen=True)
class StepSeconds:
    """One step of a run. seconds: in all; clips: that it ran on; film: seconds of film, of the cut alone. device: where
    it computes, "cpu" or that of the scores' networks.
    """

    step: str
    seconds: float
    clips: int
    film: float = 0.0
    device: str = "cpu"

    @property
    def per_clip(self) -> float:
        """Seconds of a clip."""
        return self.seconds / self.clips if self.clips else 0.0


def seconds_by_step(out: Path, unit: str | None = None) -> dict[str, StepSeconds]:
    """{step: what it took} of a run's folder, the dearest first. unit: the key of the one that is told of; None: all.

    What was done again, as after a crash, counts each time: it tells what a clip takes. MovaError for damaged files.
    """
    import pyarrow as pa

    try:
        rows: Iterable[Mapping[str, Any]] = read_timings(CurationFolder(out).timings).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise MovaError(f"the timings in {out} cannot be read ({str(error).splitlines()[0]}): remove them") from None
    device = _device(out)
    found: dict[str, StepSeconds] = {}
    for row in rows:
        if unit is not None and row["unit"] != unit:
            continue
        step = row["step"]
        known = found.get(step, StepSeconds(step, 0.0, 0, 0.0, device if _has_network(step) else "cpu"))
        found[step] = StepSeconds(
            step, known.seconds + row["seconds"], known.clips + row["clips"], known.film + row["film"], known.device
        )
    return dict(sorted(found.items(), key=lambda item: (-item[1].seconds, item[0])))


def _has_network(step: str) -> bool:
    return step in SCORES and bool(SCORES[step].weights)


def _device(out: Path) -> str:
    """The device of the run's networks; runs of several devices are told by their last."""
    path = CurationFolder(out).config
    return str(read_yaml(path).get("device", "cpu")) if path.is_file() else "cpu"
