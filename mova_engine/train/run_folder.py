"""A run's folder: its owner, its top-level files, and a lock against a second run."""

from pathlib import Path

from mova_engine.config.command import to_yaml
from mova_engine.config.train import TrainConfig
from mova_engine.errors import MovaError
from mova_engine.files.writable import check_writable
from mova_engine.files.written import Written
from mova_engine.train.fp8_watch import RECORD
from mova_engine.train.loss_curve import PICTURE
from mova_engine.train.metrics import METRICS, REPLACED, TENSORBOARD, check_metrics
from mova_engine.train.run_lock import RunLock, patience_of_a_restart
from mova_engine.train.sample_scores import SCORES
from mova_engine.train.training_state import FOLDER, checkpoints_of, clean_up

CONFIG, SAMPLES = "config.yaml", "samples"
# The folders that a run writes into, those of its own clips aside.
FOLDERS = (FOLDER, TENSORBOARD, SAMPLES, SCORES)
# As whose the run's files are recorded.
BY = "train"
WAY_OUT = "move it away, or give another --out"


class RunFolder:
    """A run's folder, locked by the first process until `release`. Files of the user in it are not changed.

    Raises MovaError if the folder cannot be written to, if another run uses it, or if a file that the run did not write
    has a name that the run will write.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.folder = config.folder
        now = check_writable(self.folder, "--out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.folder, now, patience_of_a_restart())
        except OSError as error:
            raise MovaError(f"cannot write {self.folder}: {error.strerror or error}") from error
        try:
            self.written = Written(self.folder, BY)
            clean_up(self.folder)
            self._claim(to_yaml(config).encode())
        except OSError as error:
            self._lock.release()
            raise MovaError(f"cannot write {error.filename or self.folder}: {error.strerror or error}") from error
        except BaseException:
            self._lock.release()
            raise

    def saved(self, checkpoint: Path) -> None:
        """Record that a checkpoint is complete: if all are removed later, the folder does not pass for a new run."""
        self.written.add(f"{FOLDER}/{checkpoint.name}")

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def _claim(self, config: bytes) -> None:
        for name in FOLDERS:
            if (self.folder / name).exists() and not (self.folder / name).is_dir():
                raise MovaError(f"{self.folder / name} is a file, where the run has a folder: {WAY_OUT}")
        check_metrics(self.folder / METRICS)
        # A folder of checkpoints alone, or one that an earlier version wrote, has no record.
        known = bool(self.written.names) or not checkpoints_of(self.folder)
        if known:
            self.written.check((METRICS, REPLACED, PICTURE, RECORD), WAY_OUT)
        path = self.folder / CONFIG
        if not (path.is_file() and path.read_bytes() == config):
            self.written.write(CONFIG, config, WAY_OUT)
        for name in (METRICS, REPLACED):
            self.written.add(name)
