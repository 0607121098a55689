"""What `mova serve` serves, to whom, and by how many workers, as typed and validated settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.byte_sizes import check_bytes
from mova_engine.config.command import Command, section
from mova_engine.config.enhance import BACKENDS, EnhanceConfig, EnhanceMode
from mova_engine.config.limits import check, check_least, check_threads
from mova_engine.config.shorthand import Shorthand
from mova_engine.config.signing import ProvenanceSettings

ABOUT = """Serve a model: OpenAI's /v1/videos, and a page to use it by.

Jobs and clips are in --store, which outlives the server: what was accepted is made, whatever is killed meanwhile.
Several machines share a PostgreSQL database and a disk: mova serve --worker-only on those that only make clips.
"""
_WHO, _JOBS, _WORK = section("Who may use it"), section("Jobs"), section("Workers")
_SIGNED = section("Provenance")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What is served, to whom, and by how many workers."""

    checkpoint: Path | None = None
    """Model folder, training run (its newest checkpoint) or Hugging Face cache folder."""
    store: Path = Path("videos")
    """Folder of jobs and clips, new or begun before."""
    name: str | None = None
    """What clients call the model; default: the name of --checkpoint's folder."""
    lora: tuple[str, ...] = ()
    """Adapters that requests may ask for, as NAME=FILE."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, with --keys."""
    port: int = 8000
    """Port to listen on; 0 takes any free one."""
    keys: Annotated[Path | None, _WHO] = None
    """File of clients: a name and a secret a line. Each sees its own jobs alone."""
    no_keys: Annotated[bool, _WHO] = False
    """Let whoever reaches the server use it, from other machines too."""
    allow_fetch: Annotated[bool, _WHO] = False
    """Fetch pictures that requests name by https addresses."""
    database: Annotated[str | None, _JOBS] = None
    """postgresql://USER@HOST/NAME, for several machines; default: SQLite in --store."""
    queue: Annotated[int, _JOBS] = 1000
    """Jobs that may wait; further ones are refused, with the seconds after which to try again."""
    per_key: Annotated[int | None, _JOBS] = None
    """Jobs of one key that may wait or run at a time; default: no limit."""
    expire: Annotated[float, _JOBS] = 168.0
    """Hours for which clips are kept; failed jobs a day at most."""
    workers: Annotated[int, _WORK] = 1
    """Worker processes of this machine, each with the model; 0: other machines make the clips."""
    worker_only: Annotated[bool, _WORK] = False
    """Make clips for a server elsewhere, which has the same --database and --store."""
    batch: Annotated[int | None, _WORK] = None
    """Clips of equal jobs that are made at once; default: up to 16 small ones, one large."""
    device: Annotated[str | None, _WORK] = None
    """cpu, cuda or npu; default: the first of npu, cuda, cpu that works."""
    dtype: Annotated[Literal["float32", "bfloat16"] | None, _WORK] = None
    """What the towers compute in; default: as stored."""
    memory: Annotated[Literal["auto", "resident", "expert", "stream", "disk"] | None, _WORK] = None
    """Where weights are, as of mova sample; default: on the host while they are not used."""
    vram: Annotated[str | None, _WORK] = None
    """The most of the device's memory to use, such as 12GB; default: what is free."""
    ram: Annotated[str | None, _WORK] = None
    """The most of the host's memory to use; default: what is free."""
    threads: Annotated[int | None, _WORK] = None
    """CPU threads of a worker; default: as mova sample."""
    hang: Annotated[float, _WORK] = 900.0
    """Seconds without a step, a decoded frame or a loaded part after which a worker counts as hung."""
    enhance: Annotated[EnhanceConfig, section("Prompts")] = field(default_factory=EnhanceConfig)
    no_provenance: Annotated[bool, _SIGNED] = False
    """Do not sign clips. Their manifests are written all the same."""
    provenance: Annotated[ProvenanceSettings, _SIGNED] = field(default_factory=ProvenanceSettings)

    def __post_init__(self) -> None:
        check(
            self.checkpoint is not None,
            "missing: --checkpoint, a model folder or a training run to serve. `make nano` trains a small one in "
            "minutes: mova serve --checkpoint runs/nano",
        )
        check_least(self, "", queue=1, per_key=1, workers=0, batch=1, hang=1, expire=0)
        check_threads(self.threads)
        check_bytes(vram=self.vram, ram=self.ram)
        check(0 <= self.port < 1 << 16, f"port must lie between 0 and 65535, got {self.port}")
        check(not self.worker_only or self.database is not None, "--worker-only goes with --database postgresql://...")
        check(not self.worker_only or self.workers > 0, "--worker-only without --workers does nothing")
        self.provenance.check_with(self.no_provenance)
        _ = self.adapters

    @property
    def adapters(self) -> tuple[tuple[str, str], ...]:
        """Adapters as (name, path). MovaError for what is not NAME=FILE, and a name that is there twice."""
        found = [tuple(each.partition("=")[::2]) for each in self.lora]
        for (name, path), typed in zip(found, self.lora, strict=True):
            check(bool(name and path), f"--lora takes NAME=FILE, got '{typed}'")
        names = [name for name, _ in found]
        check(len(set(names)) == len(names), f"--lora: the name '{max(names, key=names.count, default='')}' is twice")
        return tuple((name, path) for name, path in found)


SERVE = Command(
    "mova serve",
    ServeConfig,
    ABOUT,
    shorthands=(Shorthand("enhance", BACKENDS, EnhanceMode, section("Prompts")),),
)
