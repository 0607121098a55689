"""What a worker process is told when it starts, as one line of JSON on its standard input; no torch.

Standard input stays open as long as the server lives: its end tells the worker that nobody waits for it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.signing import ProvenanceSettings
from mova_engine.serving.job_store import JobStore
from mova_engine.serving.store_database import StoreLimits

# The line by which a worker is asked to end in order.
STOP = "stop"
# Folder of a store's own key and certificate.
SIGNING = "signing"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """name: of the worker, never used before. model: as clients call it. lora: adapters as (name, path). hang_s:
    seconds without a sign of work after which the worker ends. sign: whether clips are signed; provenance: by
    what, and what is stated. batch: clips that are made at once; None: by their size. enhance: what rewrites the
    prompts of jobs that ask for it.
    """

    name: str
    store: str
    database: str | None
    checkpoint: str
    model: str
    device: str | None
    dtype: str | None
    memory: str | None
    vram: str | None
    ram: str | None
    threads: int | None
    lora: tuple[tuple[str, str], ...]
    hang_s: float
    batch: int | None
    sign: bool
    provenance: ProvenanceSettings
    enhance: EnhanceConfig
    limits: StoreLimits

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "WorkerSettings":
        """What `to_line` wrote."""
        found: dict[str, Any] = json.loads(line)
        found["limits"] = StoreLimits(**found["limits"])
        found["enhance"] = EnhanceConfig(**_with_paths(found["enhance"], "cache"))
        found["provenance"] = ProvenanceSettings(**_with_paths(found["provenance"], "certificate", "key"))
        found["lora"] = tuple((name, path) for name, path in found["lora"])
        return cls(**found)

    def open_store(self) -> JobStore:
        """The store that the server has."""
        return JobStore.open(self.database, Path(self.store), self.limits)


def _with_paths(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: Path(value) if name in names and value is not None else value for name, value in values.items()}
