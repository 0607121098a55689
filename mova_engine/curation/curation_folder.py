"""The folder of a curation: its files' names, and whether a run may go on in it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import to_yaml
from mova_engine.config.curate import CurateConfig
from mova_engine.curation.accepted_clips import LISTING
from mova_engine.curation.clip_file import CLIPS
from mova_engine.curation.ledger import Ledger
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.digests import Digests
from mova_engine.files.writable import PROBE, check_writable

# What a folder of an engine that keeps other things in it has as another number.
FORMAT = 1
_STATE = "curation.json"
# What a run leaves that is killed before it has kept its own state: of films and weights, and the unfinished state.
_BEFORE = ("digests", "lengths")
_UNFINISHED = (PROBE, f".{_STATE}.")


@dataclass(frozen=True)
class CurationFolder:
    """OUT of a curation."""

    out: Path

    @property
    def clips(self) -> Path:
        """The table of all clips."""
        return self.out / CLIPS

    @property
    def metadata(self) -> Path:
        """The list of clips that are kept, as `--data` takes it."""
        return self.out / LISTING

    @property
    def failures(self) -> Path:
        """A line of JSON for each unit and film that failed: its name, step, reason and attempts."""
        return self.out / "failures.jsonl"

    @property
    def config(self) -> Path:
        """The settings of the last run, as `--config` takes them."""
        return self.out / "config.yaml"

    @property
    def timings(self) -> Path:
        """Seconds and hosts, which nothing else depends on."""
        return self.out / "timings"

    @property
    def ledger(self) -> Ledger:
        """What was found of each unit."""
        return Ledger(self.out / "ledger")

    @property
    def digests(self) -> Digests:
        """Digests of films, those of large ones kept in the folder."""
        return Digests(self.out / "digests", lambda path, data: write_atomic(path, data, sync=False))

    def order(self, filters: Sequence[str]) -> tuple[str, ...] | None:
        """The order of these filters that the folder's runs use; None where none is kept of them."""
        order = self._state().get("order", [])
        return tuple(order) if sorted(order) == sorted(filters) else None

    def check(self, raw: Sequence[Path]) -> None:
        """MovaError where a run of these sources cannot go on in the folder: it cannot be written to, holds something
        else, or what another version of the engine wrote, or clips of sources that are left out now.
        """
        check_writable(self.out, "--out")
        names = os.listdir(self.out) if self.out.is_dir() else []
        if all(name.startswith(_UNFINISHED) or name in _BEFORE for name in names):
            return
        state = self._state()
        if not state:
            raise MovaError(f"{self.out} holds something else than a curation; give another --out")
        if state["format"] != FORMAT:
            raise MovaError(
                f"{self.out} was written by an engine that keeps another format ({state['format']}, here {FORMAT}); "
                "give another --out"
            )
        left_out = [path for path in state["raw"] if path not in _places(raw)]
        if left_out:
            raise MovaError(f"{self.out} holds clips of {left_out[0]}, which is left out now; give another --out")

    def begin(self, config: CurateConfig, order: Sequence[str]) -> None:
        """Keep what a later run, and the report, need to know of this one."""
        state = {"format": FORMAT, "raw": _places(config.raw), "order": list(order)}
        write_atomic(self.out / _STATE, (json.dumps(state, indent=1) + "\n").encode())
        write_atomic(self.config, to_yaml(config).encode())

    def _state(self) -> dict[str, list[str]]:
        try:
            state = json.loads((self.out / _STATE).read_bytes())
        except (OSError, ValueError):
            return {}
        usable = isinstance(state, dict) and {"format", "raw", "order"} <= state.keys()
        return state if usable else {}


def _places(raw: Sequence[Path]) -> list[str]:
    return [str(path.absolute()) for path in raw]
